"""The three stages as commands, from frozen settings to artefacts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_text import Made

import primus.data
import primus.samples
import primus.tokenizer
from primus.artifacts.timing import times_path
from primus.config.frozen import StageSettings
from primus.config.schema.keys import Stage

CANARY = "hf_canary0123456789canary0123456789"


def settings(made: Made, stage: Stage, directory: Path) -> Path:
    names = [str(path) for path in made.texts]
    text: dict[str, Any] = {"json_key": "text", "max_bad_lines": 5, "data_version": "1"}
    values: dict[str, dict[str, Any]] = {
        "tokenizer": text
        | {
            "tokenizer_type": "HuggingFaceTokenizer",
            "tokenizer_model": None,
            "tokenizer_data_path": names,
            "tokenizer_vocab_size": 300,
        },
        "data": text
        | {
            "dataset": "small",
            "data_path": names,
            "hf_dataset": None,
            "append_eod": True,
            "workers": 9,
        },
        "samples": {"seq_length": 16, "split": "90,8,2", "seed": 7},
    }
    path = directory / f"{stage}.json"
    StageSettings.of(stage, values[stage]).save(path)
    return path


def arguments(path: Path, output: Path, *more: str | Path) -> list[str]:
    return ["--settings", str(path), *map(str, more), "--output", str(output)]


def test_the_stages_make_the_same_as_the_library_and_no_token_leaks(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", CANARY)
    outputs = {
        stage: tmp_path / stage / "manifest.json" for stage in ("tokenizer", "data", "samples")
    }
    frozen = {stage: settings(made, stage, tmp_path) for stage in ("tokenizer", "data", "samples")}
    primus.tokenizer.main(arguments(frozen["tokenizer"], outputs["tokenizer"]))
    more = ["--tokenizer", outputs["tokenizer"], "--options", '{"workers": 1}']
    primus.data.main(arguments(frozen["data"], outputs["data"], *more))
    primus.samples.main(arguments(frozen["samples"], outputs["samples"], "--data", outputs["data"]))
    assert outputs["tokenizer"].read_bytes() == made.tokenizer_path.read_bytes()
    assert outputs["data"].read_bytes() == made.data_path.read_bytes()
    assert outputs["samples"].read_bytes() == made.samples_path.read_bytes()
    for output in outputs.values():
        assert json.loads(times_path(output).read_text())["succeeded"] is True
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 20
    assert [path for path in written if CANARY.encode() in path.read_bytes()] == []
    assert CANARY not in "".join(capfd.readouterr())


@pytest.mark.parametrize("stage", ["tokenizer", "data", "samples"])
def test_help_shows_an_example(stage: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"primus.{stage}", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"python -m primus.{stage} --settings S.json" in done.stdout
    assert f"output/{stage}/demo/manifest.json" in done.stdout


def test_missing_text_is_one_line_and_its_status(made: Made, tmp_path: Path) -> None:
    path = settings(made, "data", tmp_path)
    content = path.read_text().replace(str(made.texts[0]), "nowhere/*.txt")
    path.write_text(content)
    output = tmp_path / "out" / "manifest.json"
    more = arguments(path, output, "--tokenizer", made.tokenizer_path)
    done = subprocess.run(
        [sys.executable, "-m", "primus.data", *more],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert done.returncode == os.EX_DATAERR
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "exit status 65"]
    assert done.stderr.startswith("error: data_path: nowhere/*.txt matches no file")
