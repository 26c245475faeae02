"""Which checkpoints are kept, how the others go, and whether there is room for another."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_checkpoint_directory import KEY, flip_a_bit, write

from primus.artifacts.run import RunIdentity
from primus.errors import CheckpointError
from primus.trainer import checkpoint_directory as directory
from primus.trainer import checkpoint_space as space
from primus.trainer.retention import Retention, delete, superfluous
from primus.trainer.started_from import FILE, note


def names(paths: list[Path]) -> list[int | None]:
    return [directory.iteration_of(path) for path in paths]


def left(root: Path) -> list[int | None]:
    return names(directory.newest_first(root)[::-1])


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (Retention(), [10, 20, 30, 40, 50, 60]),
        (Retention(keep_last=2), [50, 60]),
        (Retention(keep_last=9), [10, 20, 30, 40, 50, 60]),
        (Retention(keep_last=1, keep_every=20), [20, 40, 60]),
        (Retention(keep_last=2, keep_every=30), [30, 50, 60]),
        (Retention(keep_last=1, keep_every=1000), [60]),
        (Retention(keep_every=20), [10, 20, 30, 40, 50, 60]),
    ],
)
def test_what_is_kept(tmp_path: Path, retention: Retention, kept: list[int]) -> None:
    for iteration in range(10, 70, 10):
        write(tmp_path, iteration)
    delete(superfluous(tmp_path, KEY, retention))
    assert left(tmp_path) == kept
    for iteration in kept:
        directory.verify(tmp_path / directory.name_of(iteration), KEY)
    assert len(list(tmp_path.iterdir())) == len(kept), "nothing else is left"


def test_damaged_ones_and_those_of_other_runs_neither_count_nor_go(tmp_path: Path) -> None:
    for iteration in (1, 2, 3, 4, 5):
        write(tmp_path, iteration)
    (tmp_path / "iter_0000005/manifest.json").unlink()
    write(tmp_path, 6, key="ffffffffffff")
    assert names(superfluous(tmp_path, KEY, Retention(keep_last=2))) == [1, 2]


@pytest.mark.fault(
    8,
    injected="a bit of each checkpoint that would be kept",
    observed="the last good one is not deleted either",
)
def test_the_last_good_one_is_never_deleted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for iteration in (1, 2, 3, 4):
        path = write(tmp_path, iteration)
        if iteration > 2:
            flip_a_bit(path / "inner/0.distcp")
    with caplog.at_level(logging.WARNING):
        assert names(superfluous(tmp_path, KEY, Retention(keep_last=1))) == [1, 3]
    assert "iter_0000004/inner/0.distcp: SHA-256" in caplog.text


def other_run(runs: Path, named: str | None, *, experiment: str = "fine") -> Path:
    path = runs / experiment / "aaaaaaaaaaaa"
    identity: dict[str, Any] = {
        "experiment": experiment,
        "key": path.name,
        "settings": {"load_checkpoint": named},
        "samples_fingerprint": "s",
        "tokenizer_fingerprint": "t",
        "tuned_sha256": None,
    }
    RunIdentity(**identity).save(path / "run.json")
    return path


def test_what_was_the_newest_when_another_run_started_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "runs/big" / KEY / "checkpoints"
    second = [write(root, iteration) for iteration in (1, 2, 3, 4)][1]
    other = other_run(tmp_path / "runs", f"runs/big/{KEY}")
    assert names(superfluous(root, KEY, Retention(keep_last=1))) == [1, 2, 3]
    note(other, second.relative_to(tmp_path))
    assert names(superfluous(root, KEY, Retention(keep_last=1))) == [1, 3]
    (other / FILE).write_text("{")
    assert names(superfluous(root, KEY, Retention(keep_last=1))) == [1, 2, 3]


def test_what_another_run_starts_from_is_kept_until_it_has_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "runs/big" / KEY / "checkpoints"
    for iteration in (1, 2, 3, 4):
        write(root, iteration)
    other_run(tmp_path / "runs", None, experiment="unrelated")
    other = other_run(tmp_path / "runs", f"runs/big/{KEY}/checkpoints/iter_0000002")
    assert names(superfluous(root, KEY, Retention(keep_last=1))) == [1, 3]
    (other / "train.json").write_text("{}")
    assert names(superfluous(root, KEY, Retention(keep_last=1))) == [1, 2, 3]


def test_another_run_that_cannot_be_read_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "runs/big" / KEY / "checkpoints"
    for iteration in (1, 2):
        write(root, iteration)
    (other_run(tmp_path / "runs", None) / "run.json").write_text("{")
    assert names(superfluous(root, KEY, Retention(keep_last=1))) == [1]
    assert "fine/aaaaaaaaaaaa/run.json" in caplog.text


def test_a_deletion_that_is_cut_short_leaves_no_half_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for iteration in (1, 2, 3):
        write(tmp_path, iteration)

    def torn(path: Path) -> None:
        os.unlink(path / "common.pt")
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", torn)
        assert names(delete([tmp_path / "iter_0000001"])) == [1]
    assert "iter_0000001: cannot be deleted: [Errno 5]" in caplog.text
    assert left(tmp_path) == [2, 3]
    assert len(list(tmp_path.iterdir())) == 3
    write(tmp_path, 1)
    delete([tmp_path / "iter_0000001"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iter_0000002", "iter_0000003"]


def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "not/yet/there"
    monkeypatch.setattr(space, "free_bytes", lambda _: 3 << 20)
    space.require(root, 3 << 20)
    with pytest.raises(CheckpointError) as refused:
        space.require(root, 5 << 30)
    assert str(refused.value) == (
        f"{root}: a checkpoint needs 5 GiB, and 3 MiB are free. Nothing was written, and earlier "
        "checkpoints are as they were. Fix: set keep_last, delete what is not needed, or move the "
        "run to another disk"
    )


@pytest.mark.parametrize(("free", "warned"), [(4096, False), (4095, True)])
def test_a_disk_on_which_not_even_two_fit_is_warned_of(
    tmp_path: Path,
    free: int,
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of a run that has a checkpoint, that one's size counts and not the estimate."""
    monkeypatch.setattr(space, "free_bytes", lambda _: free)
    space.warn_when_scarce(tmp_path / "none", 2048)
    assert ("not even two fit" in caplog.text) == warned
    caplog.clear()
    write(tmp_path, 1)
    flip_a_bit(write(tmp_path, 2) / "inner/0.distcp")
    (tmp_path / "iter_0000002/manifest.json").write_text("{")
    assert space.newest_bytes(tmp_path) == 6 + 2048
    space.warn_when_scarce(tmp_path, 1 << 60)
    assert "takes about 2.006 KiB" in caplog.text


def test_free_space_is_that_of_the_nearest_directory_that_exists(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    assert 0 < space.free_bytes(tmp_path / "a/b") <= status.f_blocks * status.f_frsize
