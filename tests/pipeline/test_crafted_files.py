"""Forged checkpoints and hostile models before the stages themselves: nothing in them runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trainer_run import REPOSITORY, Bench, Run, settings_of

from tests.unit.crafted import WAYS, Payload, forge, load_as_torch_does

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(600)]

CHANGES = {"train_iters": 4, "save_interval": 2, "eval_iters": 0}


@pytest.fixture(scope="module")
def undisturbed(bench: Bench) -> Run:
    """A finished run with two checkpoints; tests only read it."""
    run = bench.run("undisturbed", **CHANGES)
    run.finish()
    return run


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`python -m primus.<arguments>`."""
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def errors(text: str) -> list[str]:
    assert "Traceback" not in text
    return [line for line in text.splitlines() if line.startswith("error: ")]


@pytest.mark.fault(
    40,
    injected="python -m primus.train on a run whose checkpoints are forged, the newest or all",
    observed="nothing runs; the older one loads and the curve is the same, or status 74",
)
def test_training_goes_on_from_the_one_before(undisturbed: Run, tmp_path: Path) -> None:
    made = tmp_path / "made"
    run = undisturbed.copy("forged", until=4, train_iters=6)
    older, newest = run.checkpoints()
    forge(newest, "object", made)
    output = run.finish()
    assert "would not load safely: asks for posix.mkdir" in output
    assert f"resuming from {older.name}" in output
    curve = run.curve()
    assert {at: curve[at] for at in undisturbed.curve()} == undisturbed.curve()
    again = undisturbed.copy("all-forged", until=4, train_iters=6)
    older, newest = again.checkpoints()
    forge(older, "index", made)
    forge(newest, "common", made)
    status, output = again.fail()
    assert status == 74, output
    assert any("none of 2 checkpoints is good" in line for line in errors(output)), output
    assert not made.exists()


@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint_of_a_stranger(
    bench: Bench, undisturbed: Run, tmp_path: Path, way: str
) -> None:
    made, foreign = tmp_path / "made", tmp_path / "foreign/iter_0000004"
    shutil.copytree(undisturbed.checkpoints()[-1], foreign)
    forge(foreign, way, made)
    run = bench.run(f"foreign-{way}", load_checkpoint=str(foreign), **CHANGES)
    status, output = run.fail()
    assert status == 2, output
    assert any("load_checkpoint = " in line and "Fix: " in line for line in errors(output)), output
    assert not made.exists()
    load_as_torch_does(foreign)
    assert made.exists(), "the payload is a real one"


def test_exports_of_a_forged_checkpoint(bench: Bench, undisturbed: Run, tmp_path: Path) -> None:
    made = tmp_path / "made"
    run = undisturbed.copy("to-export", until=4)
    shutil.copy(undisturbed.directory / "train.json", run.directory)
    forge(run.checkpoints()[-1], "hidden in the index", made)
    settings_of("export", **CHANGES).save(tmp_path / "export.json")
    given = ("--train", run.directory / "train.json", "--output", tmp_path / "hf/manifest.json")
    tokenizer = ("--tokenizer", bench.tokenizer)
    ways = [
        ("primus.export", "--settings", tmp_path / "export.json", *given, *tokenizer),
        ("primus.checkpoint", "export", run.directory, "--output", tmp_path / "hf", *tokenizer),
    ]
    for arguments in ways:
        done = command(*arguments)
        assert done.returncode == 65, done.stderr
        (error,) = errors(done.stderr)
        assert ".metadata: would not load safely: asks for posix.mkdir" in error
        left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
        assert left <= {"export.json", "manifest.json.times.jsonl"}
        assert not (tmp_path / ".hf.tmp").exists()
    assert not made.exists()


@pytest.fixture(scope="module")
def model(bench: Bench, undisturbed: Run) -> Path:
    """What the finished run exports."""
    target = bench.path / "model"
    done = command(
        *("primus.checkpoint", "export", undisturbed.directory, "--tokenizer", bench.tokenizer),
        *("--output", target),
    )
    assert done.returncode == 0, done.stderr
    return target


def hostile(model: Path, target: Path, made: Path) -> Path:
    """The model with code beside it, in every place where libraries look for some."""
    shutil.copytree(model, target)
    code = f"import os\nos.makedirs({str(made)!r}, exist_ok=True)\n"
    for name in ("modeling_evil", "configuration_evil", "tokenization_evil", "__init__"):
        (target / f"{name}.py").write_text(code)
    config = json.loads((target / "config.json").read_text())
    config |= {
        "auto_map": {
            "AutoConfig": "configuration_evil.Config",
            "AutoModelForCausalLM": "modeling_evil.Model",
            "AutoTokenizer": ["tokenization_evil.Tokenizer", None],
        },
        "trust_remote_code": True,
        "custom_pipelines": {"text-generation": {"impl": "modeling_evil.Pipe", "pt": ["Model"]}},
    }
    (target / "config.json").write_text(json.dumps(config))
    tokenizer = {"tokenizer_class": "Evil", "auto_map": config["auto_map"]}
    (target / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (target / "chat_template.jinja").write_text("{{ ''.__class__.__mro__ }}")
    torch.save({"w": Payload(made)}, target / "pytorch_model.bin")
    return target


def test_a_model_with_code_beside_it(bench: Bench, model: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    source = hostile(model, tmp_path / "model", made)
    changes = CHANGES | {"load_hf": str(source), "train_iters": 1}
    settings_of("weights", **changes).save(tmp_path / "weights.json")
    weights = tmp_path / "weights/manifest.json"
    done = command(
        *("primus.weights", "--settings", tmp_path / "weights.json", "--output", weights),
    )
    assert done.returncode == 0, done.stderr
    read = json.loads(weights.read_text())["files"]
    assert set(read) == {"config.json", "model.safetensors"}
    run = bench.run("from-hostile", **changes)
    arguments = [*run.command()[2:], "--weights", weights]
    done = command(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not made.exists()
    torch.load(source / "pytorch_model.bin", weights_only=False)
    assert made.exists(), "the payload is a real one"


def only_pickles(source: Path, outside: Path) -> None:
    (source / "model.safetensors").unlink()


def climbing_index(source: Path, outside: Path) -> None:
    index = {"weight_map": {"w": f"../{outside.name}/model.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))


def pickle_in_the_index(source: Path, outside: Path) -> None:
    index = {"weight_map": {"w": "pytorch_model.bin"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))


def pickle_by_the_name_of_safetensors(source: Path, outside: Path) -> None:
    shutil.copy(source / "pytorch_model.bin", source / "model.safetensors")


@pytest.mark.fault(
    40,
    injected="load_hf with pickles, remote code, an index that climbs out, before primus.weights "
    "and primus.train",
    observed="code beside a model is not read; what is no safetensors is refused, status 65",
)
@pytest.mark.parametrize(
    "change",
    [only_pickles, climbing_index, pickle_in_the_index, pickle_by_the_name_of_safetensors],
    ids=lambda change: change.__name__,
)
def test_a_model_that_is_no_safetensors(
    bench: Bench, model: Path, tmp_path: Path, change: object
) -> None:
    made = tmp_path / "made"
    source = hostile(model, tmp_path / "model", made)
    change(source, model)  # type: ignore[operator]
    settings = settings_of("weights", **CHANGES | {"load_hf": str(source)})
    settings.save(tmp_path / "weights.json")
    weights = tmp_path / "weights/manifest.json"
    done = command(
        *("primus.weights", "--settings", tmp_path / "weights.json", "--output", weights),
    )
    assert not made.exists()
    assert done.returncode == 65, done.stdout + done.stderr
    assert len(errors(done.stderr)) == 1
    assert not weights.exists()
