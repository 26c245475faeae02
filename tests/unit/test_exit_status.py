"""Every command against mistakes: the documented status, one line, and nothing is made.

Status 71 (out of memory): tests/pipeline/test_rank_failures.py; 74 of checkpoints:
test_checkpoint_faults.py and test_crafted_files.py; 75 (asked to stop): test_resume.py; 130 and
signals: test_errors.py and test_agent.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from primus import errors
from primus.artifacts.export import ExportManifest
from primus.artifacts.manifest import Manifest
from primus.artifacts.run import RunIdentity, TrainManifest
from primus.artifacts.tokens import DataManifest, SamplesManifest, TokenizerManifest
from primus.artifacts.weights import WeightsManifest
from primus.config.frozen import StageSettings
from primus.config.identity import identities
from primus.config.load import load
from tests.unit.commands import ROOT, Commands, Done, every_command
from tests.unit.damage import manifest

# All of it: each test is quick.
pytestmark = pytest.mark.slow

EXPERIMENT = "llama3_8B_tiny"
SWEEP = "llama3_8B_tiny_lr"
INPUTS: dict[str, type[Manifest]] = {
    "tokenizer": TokenizerManifest,
    "data": DataManifest,
    "samples": SamplesManifest,
    "weights": WeightsManifest,
    "train": TrainManifest,
    "export": ExportManifest,
}
# What each stage reads besides its settings.
STAGES: dict[str, list[str]] = {
    "tokenizer": [],
    "data": ["tokenizer"],
    "samples": ["data"],
    "shapes": [],
    "tune": ["shapes"],
    "weights": [],
    "train": ["samples", "tokenizer"],
    "export": ["train", "tokenizer"],
    "evaluate": ["export", "samples"],
    "report": ["train", "samples", "data", "tokenizer"],
    "preflight": [],
    "ab": ["samples", "tokenizer", "tuned"],
}
PEOPLE = {
    *("checkpoint", "compare", "config", "explain", "generate", "import_config", "kubernetes"),
    *("plan",),
    *("status", "sweep"),
}
# What stages and Snakemake start; those that have a command line say what is wrong with it.
STARTED = {
    *("ab_rank", "agent", "node", "train_rank", "watched_rank", "preflight_node", "preflight_rank"),
    *("step_turns", "container.inside", "container.run", "gemm.activate"),
    *("slurm.cancel", "slurm.status", "slurm.submit"),
}
# Without one: programs of our own start them with what they need.
BARE = {
    *("gemm.worker", "gemm.node_worker", "gemm.cublaslt.build", "gemm.hipblaslt.gpus"),
    *("gemm.hipblaslt.node", "importing.reference"),
}
# Reached only after torch is imported.
SLOW = [("tune", "shapes")]


@dataclass(frozen=True)
class Mistake:
    """One call of a command, and how it has to end."""

    module: str
    name: str
    arguments: list[str]
    status: int
    said: str = ""
    stdout: str = "kept"
    marks: list[pytest.MarkDecorator] = field(default_factory=list)


def of_stages() -> Iterator[Mistake]:
    """Settings, every input and the output of each stage."""
    for stage, inputs in STAGES.items():
        other = "train" if stage == "weights" else "weights"
        own = "train" if stage in ("preflight", "ab") else stage

        def call(
            name: str, status: int, said: str, stage: str = stage, own: str = own, **changed: str
        ) -> Mistake:
            words = ["--settings", changed.get("settings", f"{own}.settings.json")]
            words += ["--options", "{"] if name == "options" else []
            for input in STAGES[stage]:
                words += [f"--{input}", changed.get(input, f"{input}.json")]
            words += ["--output", changed.get("output", "out/made.json")]
            # The same code reads the settings of all stages.
            same = name in ("settings damaged", "settings of no kind") and stage != "data"
            slow = same or (stage, name.split()[0]) in SLOW
            marks = [pytest.mark.slow] if slow else []
            return Mistake(stage, name, words, status, said, marks=marks)

        yield call("settings missing", 65, "missing.json", settings="missing.json")
        yield call("settings damaged", 65, "damaged.json", settings="damaged.json")
        yield call("settings of no kind", 65, "other.json", settings="other.json")
        yield call("settings of another stage", 65, other, settings=f"{other}.settings.json")
        yield call("options", 2, "--options")
        yield call("output in a file", 74, "Fix: ", output="file/made.json")
        for input in inputs:
            # The report first asks whether the run is that of its settings.
            if stage == "report" and input != "train":
                continue
            for bad in ("missing", "damaged", "other"):
                yield call(f"{input} {bad}", 65, f"{bad}.json", **{input: f"{bad}.json"})


def of_people() -> Iterator[Mistake]:
    """Names, keys, files, closed pipes."""
    cases: list[tuple[str, str, int, str]] = [
        ("plan", "nosuch", 2, "there is no experiment"),
        ("plan", f"{EXPERIMENT} --hardware nosuch", 2, "hardware"),
        ("plan", f"{EXPERIMENT} --config lrr=1", 2, "did you mean lr?"),
        ("plan", f"{EXPERIMENT} --efficiency 7", 2, "--efficiency"),
        ("explain", "nosuch", 2, "there is no experiment"),
        ("explain", f"{EXPERIMENT} --config a", 2, "neither key=value"),
        ("status", "nosuch", 2, "there is no experiment"),
        ("status", "../x", 2, "there is no experiment"),
        ("status", "--watch x", 2, "--watch"),
        ("compare", "", 2, "none is named"),
        ("compare", "run", 2, "Fix: name another run"),
        ("compare", "nosuch run", 2, "there is no such run"),
        ("compare", "run bad", 2, "logged no iteration"),
        ("compare", "run torn --output made.json", 2, "is to be the page"),
        ("sweep", "nosuch", 2, "there is no sweep"),
        ("sweep", f"{SWEEP} --config lr=1", 2, "sets it for each point"),
        ("sweep", f"{SWEEP} --output made.json", 2, "is to be the page"),
        ("sweep", f"{SWEEP} --output {'0' * 12}.html", 2, "digest"),
        ("sweep", f"{SWEEP} --output file/o.html", 74, "file"),
        ("import_config", "missing.yaml", 2, "there is no such file"),
        ("import_config", "damaged.json", 2, "not YAML"),
        ("config", "show nosuch", 2, "there is no experiment"),
        ("config", f"show ../configs/{EXPERIMENT}", 2, "there is no experiment"),
        ("config", "check nosuch", 2, "there is no experiment"),
        ("config", "zzz", 2, "COMMAND"),
        ("config", "freeze nosuch --stage train --output o.json", 2, "there is no experiment"),
        ("config", f"freeze {EXPERIMENT} --stage zzz --output o.json", 2, "--stage"),
        ("config", f"freeze {EXPERIMENT} --stage train --output file/o.json", 74, "file"),
        ("config", f"freeze {EXPERIMENT} --stage train --output train.{'0' * 12}.json", 2, "diges"),
        ("checkpoint", "list nosuch", 2, "RUN = nosuch"),
        ("checkpoint", "list ../../etc", 2, "RUN = "),
        ("checkpoint", "list bad", 65, "bad/run.json"),
        ("checkpoint", "verify bad", 65, "bad/run.json"),
        ("checkpoint", "verify torn", 74, "checkpoints are bad"),
        ("checkpoint", "prune bad --keep-last 1", 65, "bad/run.json"),
        ("checkpoint", "prune run --keep-last 0", 2, "--keep-last"),
        ("checkpoint", "export bad --output x", 65, "bad/run.json"),
        ("checkpoint", "export run --output x", 2, "--iteration"),
        ("generate", "nosuch hello", 2, "RUN = nosuch"),
        ("generate", "run hello", 2, "neither an export nor a checkpoint"),
        ("generate", "bad hello", 65, "bad/run.json"),
        ("generate", "x hello --temperature -1", 2, "--temperature"),
        ("generate", "x hello --temperature inf", 2, "--temperature"),
        ("generate", "x hello --top-p 0", 2, "--top-p"),
        ("generate", "x hello --top-k -1", 2, "--top-k"),
        ("generate", "x hello --seed x", 2, "--seed"),
        ("generate", "x hello --max-new-tokens 0", 2, "--max-new-tokens"),
        ("kubernetes", "submit nosuch.sh --image i --claim c --mount /m", 2, "nosuch.sh"),
        ("kubernetes", "submit damaged.json --image i --claim c --mount /m", 2, "properties"),
        ("report", "--check missing.json", 65, "missing.json"),
        ("report", "--check damaged.json", 65, "damaged.json"),
        ("report", "--check other.json", 65, "other.json"),
        ("tune", "--settings tune.settings.json --shapes x --verify", 2, "--tuned"),
        ("slurm.submit", "nosuch.sh", 2, "nosuch.sh"),
        ("slurm.submit", "damaged.json", 2, "properties"),
        ("gemm.activate", "missing.jsonl 1", 65, "missing.jsonl"),
        ("node", "--nproc-per-node 1 --log-dir l --module m", 2, "no task of a SLURM step"),
        ("agent", "--nproc-per-node 1 --log-dir l --module m", 2, "--master-port"),
    ]
    for module, words, status, said in cases:
        yield Mistake(module, words, words.split(), status, said)
    closed = [("plan", EXPERIMENT), ("explain", EXPERIMENT), ("status", "")]
    closed += [("config", f"show {EXPERIMENT}")]
    closed += [("config", command) for command in ("schema", "reference", "defaults")]
    for module, words in closed:
        yield Mistake(module, f"{words} | head", words.split(), 141, stdout="closed pipe")


MISTAKES = [
    *of_stages(),
    *of_people(),
    *(
        Mistake(name, "no such option", ["--no-such-option"], 2, "usage")
        for name in sorted({*STAGES, *PEOPLE, *STARTED})
    ),
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings and inputs of every stage, and their damaged kin."""
    path = tmp_path_factory.mktemp("mistakes")
    for name in ("configs", "corpus"):
        (path / name).symlink_to(ROOT / name)
    values = {"hardware": "cpu", "load_hf": "nowhere/at/all"}
    for stage, made in identities(load(EXPERIMENT, values, root=ROOT, stages=()).settings).items():
        StageSettings.of_key(made, EXPERIMENT).save(path / f"{stage}.settings.json")
    for name, kind in INPUTS.items():
        (path / f"{name}.json").write_bytes(manifest(kind))
    (path / "damaged.json").write_text('{"kind":')
    (path / "other.json").write_text('{"kind": "zzz", "schema_version": 1}')
    for name in ("shapes", "tuned"):
        (path / f"{name}.json").write_text("{}\n")
    (path / "file").write_text("x")
    for run in ("run", "bad", "torn"):
        (path / run / "checkpoints").mkdir(parents=True)
        (path / run / "run.json").write_bytes(manifest(RunIdentity))
    (path / "bad/run.json").write_text("{")
    (path / "torn/checkpoints/iter_0000001").mkdir()
    return path


def files(directory: Path) -> set[str]:
    """All that is there, but for the times that a stage notes of each try."""
    found = (str(path.relative_to(directory)) for path in directory.rglob("*"))
    return {name for name in found if name != "out" and not name.endswith(".times.jsonl")}


def lines(done: Done) -> list[str]:
    """What is said, without argparse's usage before it."""
    assert "Traceback" not in done.stderr, done.stderr
    usage, found, rest = done.stderr.rpartition("\npython -m ")
    text = found.lstrip() + rest if usage.startswith("usage: ") else done.stderr
    return text.splitlines()


def test_every_command_is_in_the_table() -> None:
    ours = {f"primus.{name}" for name in {*STAGES, *PEOPLE, *STARTED, *BARE}}
    # The list of commands, which is one itself.
    assert every_command() == ours | {"primus"}
    assert {mistake.module for mistake in MISTAKES} == {*STAGES, *PEOPLE, *STARTED}
    assert {mistake.status for mistake in MISTAKES} <= {*errors.meanings(), 128 + 13}


@pytest.mark.parametrize(
    "mistake",
    [pytest.param(m, id=f"{m.module} {m.name}"[:60], marks=m.marks) for m in MISTAKES],
)
def test_a_mistake_has_its_status_and_one_line(
    commands: Commands, directory: Path, mistake: Mistake
) -> None:
    before = files(directory)
    done = commands.run(
        f"primus.{mistake.module}", mistake.arguments, directory, stdout=mistake.stdout
    )
    assert done.status == mistake.status, done.stderr
    said = [line for line in lines(done) if not line.startswith("jobs are not shown: ")]
    if mistake.status == 141:
        assert said == []
    elif mistake.said == "usage":
        (line,) = said
        assert re.match(r"python -m [\w. ]+: error: ", line)
    else:
        first, *rest = said
        assert "error: " in first
        assert mistake.said in first
        meaning = f"exit status {mistake.status}: {errors.meanings()[mistake.status]}"
        assert rest == ([] if mistake.status == 2 else [meaning])
        assert first.isprintable()
    assert files(directory) == before
