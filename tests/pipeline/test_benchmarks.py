"""The benchmarks run: all of them ask for help, and the one of the step trains what it says."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
from trainer_run import REPOSITORY

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(300)]

SCRIPTS = sorted(
    path.stem
    for path in (REPOSITORY / "benchmarks").glob("*.py")
    if "__main__" in path.read_text(encoding="utf-8")
)
SHAPE = {
    "num-layers": 2,
    "hidden-size": 64,
    "ffn-hidden-size": 128,
    "num-attention-heads": 4,
    "num-query-groups": 2,
    "vocab-size": 256,
    "seq-length": 64,
}
TRAINING = ["primus", "primus tuned", "primus loop", "transformers eager"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_tells_how_it_is_used(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"benchmarks.{name}").main(["--help"])
    assert end.value.code == 0
    assert "--" in capsys.readouterr().out
    listed = (REPOSITORY / "benchmarks/README.md").read_text(encoding="utf-8")
    assert f"| `{name}.py` |" in listed


def run(
    tmp_path: Path, contestants: list[str], *options: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    sizes = [word for name, size in SHAPE.items() for word in (f"--{name}", str(size))]
    return subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.step", *sizes, *options),
            *("--only", ",".join(contestants), "--json", str(tmp_path / "figures.json")),
        ],
        cwd=REPOSITORY,
        env=os.environ | {"TORCHDYNAMO_DISABLE": "1"} | variables,
        capture_output=True,
        text=True,
    )


def table(done: subprocess.CompletedProcess[str]) -> dict[str, list[str]]:
    return {
        row[0]: row
        for line in done.stdout.splitlines()
        if len(row := [cell.strip() for cell in line.strip("|").split("|")]) == 7
    }


def test_the_steps_of_all_contestants_have_one_loss(tmp_path: Path) -> None:
    contestants = [*TRAINING, "gemm only", "best gemm only"]
    done = run(tmp_path, contestants, "--rounds", "2", "--steps", "2")
    assert done.returncode == 0, done.stderr
    rows = table(done)
    assert {rows[name][-1] for name in TRAINING} == {rows["primus"][-1]}
    assert re.fullmatch(r"[45]\.\d{5}", rows["primus"][-1])
    assert rows["gemm only"][-1] == ""
    found = json.loads((tmp_path / "figures.json").read_text())
    assert {n: len(times) for n, times in found["seconds"].items()} == dict.fromkeys(contestants, 2)
    share = float(rows["primus"][3])
    wanted = found["flops"] / found["peak_flops"] / median(found["seconds"]["primus"])
    assert share == pytest.approx(wanted, abs=1e-3)


def test_a_contestant_that_fails_costs_no_other_its_figures(tmp_path: Path) -> None:
    # As a peer that is installed, and whose model does not fit.
    peer = tmp_path / "litgpt/scripts"
    peer.mkdir(parents=True)
    (peer / "__init__.py").touch()
    (peer / "convert_hf_checkpoint.py").write_text("copy_weights_hf_llama = None\n")
    (peer.parent / "__init__.py").write_text(
        "Config = dict\n\ndef GPT(config):\n    raise MemoryError('no room for it')\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = run(tmp_path, ["primus", "litgpt compiled"], "--rounds", "1", PYTHONPATH=path)
    assert done.returncode == 1
    assert "litgpt compiled: failed: MemoryError: no room for it\n" in done.stdout
    rows = table(done)
    assert float(rows["primus"][-1]) > 0
    assert "litgpt compiled" not in rows
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["failed"] == {"litgpt compiled": "MemoryError: no room for it"}


def test_without_a_gpu_or_a_peer_it_ends_before_anything_long(tmp_path: Path) -> None:
    (tmp_path / "litgpt.py").write_text("raise ImportError('of another torch')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = run(
        tmp_path, ["litgpt compiled"], "--device", "cuda", PYTHONPATH=path, CUDA_VISIBLE_DEVICES=""
    )
    assert done.returncode == 2
    peer, gpu = done.stdout.splitlines()
    assert peer == (
        "error: litgpt compiled: cannot import litgpt: ImportError: of another torch. "
        "Fix: install benchmarks/requirements.txt, or leave it out by --only"
    )
    assert re.fullmatch(r"error: torch \S+ sees no GPU\. Fix: .*", gpu)
    assert not (tmp_path / "figures.json").exists()


def test_contestants_that_start_together_take_turns_of_several_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of a GPU, whose work a CPU does."""
    from benchmarks.step import Race, _arguments

    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    args = _arguments(["--device", "cuda", "--only", "transformers eager", "--rounds", "2"])
    args.json = tmp_path / "figures.json"
    shape = {name.replace("-", "_"): size for name, size in SHAPE.items()}
    shape |= {"micro_batch_size": 1, "bf16": False, "experiment": None, "device": "cpu"}
    race = Race(args, {**shape, "scratch": str(tmp_path)})
    race.run()
    race.print_table()
    said = capsys.readouterr().out
    losses = set(re.findall(r": ready \d+ s after the start, loss (\S+)", said))
    assert len(losses) == 1
    assert re.search(r"^round 2: primus \d\.\d{4}, transformers eager \d\.\d{4}$", said, re.M)
    assert losses == {rows.rpartition(" | ")[2].strip(" |") for rows in _rows_of(said)}
    found = json.loads(args.json.read_text())
    assert [len(times) for times in found["seconds"].values()] == [2, 2]


def _rows_of(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith(("| primus", "| transformers"))]
