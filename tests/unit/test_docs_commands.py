"""Every command that the documentation shows is one that its program understands; many are run.

Snakemake's are planned in tests/pipeline/test_docs_run.py.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest

from primus import compare
from primus.config.identity import identities
from primus.config.load import load
from primus.config.paths import artifact
from tests.documented import (
    ROOT,
    Shown,
    blocks,
    inline,
    module_of,
    pages,
    said,
    shown,
    simple_commands,
    understood,
)
from tests.unit.commands import Commands
from tests.unit.compared_runs import edit, write_compared
from tests.unit.report_run import RunSpec

EXPERIMENT = "llama3_8B_tiny"
# Once each, whatever the number of pages that show it.
COMMANDS = list({(one.words, one.output): one for one in reversed(shown())}.values())
OURS = [(one, called) for one in COMMANDS if (called := module_of(one.words))]
MADE = [one for one in COMMANDS if one.words[0] == "make"]
# By the words that they start with, and why no test starts them.
NOT_RUN = {
    "source .venv/bin/activate": "an environment of its own, which the tests run in already",
    "python -m pip install": "needs a package index",
    "python -m pip download": "as above",
    "docker build": "needs a container runtime and a base image of many GiB",
    "docker save": "as above",
    "apptainer build": "as above",
    "gzip": "packs what docker gives it",
    "tensorboard --logdir": "serves until it is stopped",
    "wandb sync": "an extra, and a service",
    "mlflow ui": "an extra, and serves until it is stopped",
}
# Quick, and all they need is a configuration and runs.
RUN = {
    *("primus", "primus.plan", "primus.config", "primus.explain", "primus.status"),
    *("primus.compare", "primus.checkpoint"),
}
# What needs more than runs whose checkpoints are made up, or does not end.
NEEDS_MORE = {"export": "weights", "--watch": "somebody who stops it"}
CALLED = [
    (one, called)
    for one, called in OURS
    if called[0] in RUN and not NEEDS_MORE.keys() & {*called[1]}
]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two experiments were trained and compared; `kept/` has two runs with known keys."""
    path = tmp_path_factory.mktemp("reader")
    for place in (path, path / "kept"):
        place.mkdir(exist_ok=True)
        (place / "corpus").symlink_to(ROOT / "corpus")
        shutil.copytree(ROOT / "configs", place / "configs")
        shutil.copy(place / f"configs/{EXPERIMENT}.yaml", place / "configs/mine.yaml")
    for experiment in (EXPERIMENT, "deepseek_v2_lite_tiny"):
        own(write_compared(path, experiment=experiment, spec=RunSpec(experiment=experiment)))
    with contextlib.chdir(path):
        compare.main([EXPERIMENT, "deepseek_v2_lite_tiny", "--output", "ab.html"])
    for made in identities(
        load(EXPERIMENT, {"hardware": "cpu"}, root=path, stages=()).settings
    ).values():
        there = path / artifact(made)
        there.parent.mkdir(parents=True, exist_ok=True)
        there.touch()
    run = write_compared(path / "kept")
    for key in ("0123456789ab", "ba9876543210"):
        own(Path(shutil.copytree(run, run.with_name(key))))
    shutil.rmtree(run)
    return path


def own(run: Path) -> None:
    """Let everything in a run say that it is of this run."""
    for file in (run / "run.json", run / "train.json", *run.glob("checkpoints/*/manifest.json")):
        edit(file, key=run.name)


def test_there_are_commands_of_every_kind() -> None:
    assert len(COMMANDS) > 100
    assert len(CALLED) > 20
    assert MADE
    assert {one.words[0] for one in COMMANDS} >= {"snakemake", "make", "python", "docker"}


@pytest.mark.parametrize("one", COMMANDS, ids=str)
def test_a_command_is_of_a_kind_that_is_tested(one: Shown) -> None:
    """A new kind fails here, so that somebody says how it is tested, or why not."""
    known = one.words[0] in ("make", "snakemake") or module_of(one.words)
    assert known or any(
        list(one.words[: len(start.split())]) == start.split() for start in NOT_RUN
    ), f"{one}: no test knows this command. Fix: run it in a test, or add it to NOT_RUN with why"


def test_what_is_not_run_is_shown_somewhere() -> None:
    shown_words = [" ".join(one.words) for one in COMMANDS]
    assert not [start for start in NOT_RUN if not any(w.startswith(start) for w in shown_words)]


@pytest.mark.parametrize(("one", "called"), OURS, ids=lambda value: str(value)[:70])
def test_the_arguments_of_a_command_of_ours_parse(
    one: Shown, called: tuple[str, list[str]]
) -> None:
    module, arguments = called
    assert not (why := understood(module, arguments)), f"{one}: {why}"


def test_the_targets_of_make_exist() -> None:
    # A dry run of each would run all that it calls make for.
    asked = ["make", "--dry-run", "--print-data-base", "help"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    targets = {line.partition(":")[0] for line in done.stdout.splitlines()}
    for one in MADE:
        words = [word for word in one.words[1:] if "=" not in word]
        assert words, one
        assert targets >= set(words), one


@pytest.mark.parametrize(("one", "called"), CALLED, ids=lambda value: str(value)[:70])
def test_a_quick_command_ends_as_the_page_says(
    commands: Commands, reader: Path, one: Shown, called: tuple[str, list[str]]
) -> None:
    module, arguments = called
    place = reader / "kept" if "0123456789ab" in str(one) else reader
    done = commands.run(module, arguments, place)
    assert "Traceback" not in done.stderr
    if one.output is None:
        assert done.status == 0, f"{one}: {done.stderr}"
    else:
        assert said(one.output, done.stdout + done.stderr), done.stdout + done.stderr


def test_files_that_a_command_names_are_there() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"output", "configs"}
    missing = [
        f"{one}: {word}"
        for one in COMMANDS
        for word in one.words
        if word.partition("/")[0] in folders and "/" in word and not word.startswith(".venv")
        if not (ROOT / word).exists()
    ]
    assert not missing


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_no_command_hides_in_a_block_of_another_language(page: Path) -> None:
    """`text` is for what programs print; a command in it would be run by nobody."""
    programs = {one.words[0] for one in COMMANDS}
    hidden = [
        line
        for _, language, text in blocks(page.read_text(encoding="utf-8"))
        if language in ("text", "console")
        for line in text.splitlines()
        if line.split()[:1] and line.split()[0] in programs and "  " not in line
    ]
    assert not hidden


INLINE = [
    one for one in dict.fromkeys(inline("python -m primus")) if "commands.md" not in one.where
]


@pytest.mark.parametrize("one", INLINE, ids=str)
def test_a_command_within_a_sentence_parses(one: Shown) -> None:
    """One that is cut short names a command and no more."""
    called = module_of(one.words)
    assert called
    module, arguments = called
    if not arguments:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists()
        return
    why = understood(module, arguments)
    assert not why or "the following arguments are required" in why


def test_an_unknown_command_would_be_seen() -> None:
    one = Shown("page.md:1", ("kubectl", "get", "pods"))
    with pytest.raises(AssertionError, match="no test knows this command"):
        test_a_command_is_of_a_kind_that_is_tested(one)
    assert understood("primus.plan", ["llama3_8B", "--hardwre", "h200"])


def test_lines_become_commands() -> None:
    line = "PYTHONPATH=x python -m primus.a [--b c] --d <key> < in.txt | gzip > out  # why"
    assert simple_commands(line) == [
        ("python", "-m", "primus.a", "--b", "c", "--d", "0123456789ab"),
        ("gzip",),
    ]
    assert said("a ... c", "x a b\n c d")
    assert not said("a ... d c", "a b c")
