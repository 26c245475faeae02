"""Saving behind the training: the same files, one at a time, and failures that surface."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer_checkpoint import ABOUT, KINDS, Training, full_disk

from primus.errors import CheckpointError
from primus.trainer import async_save
from primus.trainer import checkpoint_directory as directory
from primus.trainer.retention import Retention

# All of it: each test is quick.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("single_rank", "eager")]

KEY = str(ABOUT["key"])


def saver(root: Path, *, behind: bool = True, **retention: int) -> Any:
    from primus.trainer.async_save import Saver

    timeout = timedelta(minutes=1) if behind else None
    return Saver(root, ABOUT, Retention(**retention), lambda: None, async_timeout=timeout)


@contextmanager
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """No file of a checkpoint is synced before the event is set."""
    let_go = threading.Event()
    fsync_files = directory.fsync_files

    def wait(paths: Any) -> None:
        assert let_go.wait(60)
        fsync_files(paths)

    with monkeypatch.context() as patched:
        patched.setattr(directory, "fsync_files", wait)
        yield let_go


def hashes(root: Path) -> dict[str, dict[str, str]]:
    found = {path.name: directory.verify(path, KEY) for path in directory.newest_first(root)}
    return {
        name: {file: record.digest for file, record in manifest.files.items()}
        for name, manifest in found.items()
    }


@pytest.mark.parametrize("changes", KINDS)
def test_the_same_files_and_losses_as_at_once(
    tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is trained on while the copy waits for the disk."""
    losses = []
    for behind in (False, True):
        training, root = Training(**changes), tmp_path / str(behind)
        saves = saver(root, behind=behind)
        losses.append(training.steps(1))
        for _ in range(2):
            with slow_disk(monkeypatch) as let_go:
                if not behind:
                    let_go.set()
                saves.save(training.state)
                losses[-1] += training.steps(1)
                let_go.set()
                saves.wait()
    assert losses[0] == losses[1]
    at_once, later = hashes(tmp_path / "False"), hashes(tmp_path / "True")
    assert list(later) == ["iter_0000002", "iter_0000001"]
    assert later == at_once


def test_behind_the_training_the_gpu_of_the_rank_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a thread starts with is the first GPU of the node."""
    used = []
    training, saves = Training(), saver(tmp_path)
    training.steps(1)
    taken = saves._write
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "is_initialized", lambda: True)
        patched.setattr(torch.cuda, "current_device", lambda: 3)
        patched.setattr(
            torch.cuda, "set_device", lambda n: used.append((threading.current_thread().name, n))
        )
        patched.setattr(saves, "_write", lambda *args: (used.append("written"), taken(*args)))
        # What is saved is made before: then the device is a number to nobody.
        snapshot = async_save.snapshot(training.state, saves._staging)
        patched.setattr(async_save, "snapshot", lambda *_: snapshot)
        saves.save(training.state)
        saves.wait()
    assert used == [("save", 3), "written"]


def test_one_at_a_time_in_the_same_buffers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, saves = Training(), saver(tmp_path)
    with slow_disk(monkeypatch) as let_go:
        training.steps(1)
        saves.save(training.state)
        buffers = {name: b.data_ptr() for name, b in saves._staging._buffers.items()}
        assert directory.newest_first(tmp_path) == []
        training.steps(1)
        second = threading.Thread(target=saves.save, args=(training.state,))
        second.start()
        second.join(0.3)
        assert second.is_alive(), "the second save waits for the first"
        let_go.set()
        second.join()
        saves.wait()
    assert [path.name for path in directory.newest_first(tmp_path)] == [
        "iter_0000002",
        "iter_0000001",
    ]
    assert {name: b.data_ptr() for name, b in saves._staging._buffers.items()} == buffers


def test_what_saves_hold_up_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, at_once = Training(), saver(tmp_path / "at-once", behind=False)
    assert at_once.held_up_seconds == 0
    training.steps(1)
    assert at_once.save(training.state) == at_once.held_up_seconds > 0
    behind = saver(tmp_path / "behind")
    with slow_disk(monkeypatch) as let_go:
        copied = behind.save(training.state)
        assert behind.held_up_seconds == copied
        timer = threading.Timer(0.3, let_go.set)
        timer.start()
        behind.wait()
    assert behind.held_up_seconds >= copied + 0.2, "the wait for what is under way counts"


@pytest.mark.fault(
    5,
    6,
    injected="ENOSPC from fsync behind the training",
    observed="the next step knows, nothing is published, the next save works",
)
def test_a_failure_is_known_at_the_next_step_and_raised_by_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, saves = Training(), saver(tmp_path)
    training.steps(1)
    saves.save(training.state)
    saves.wait()
    training.steps(1)
    with monkeypatch.context() as patched:
        patched.setattr(directory, "fsync_files", full_disk)
        saves.save(training.state)
        saves._flight.join()
    assert saves.failed
    with pytest.raises(CheckpointError, match=r"cannot save iteration 2: .*No space left"):
        saves.wait()
    assert not saves.failed
    assert [path.name for path in tmp_path.iterdir()] == ["iter_0000001"]
    saves.save(training.state)
    saves.wait()
    assert directory.verify(tmp_path / "iter_0000002", KEY)


def test_a_next_save_raises_the_failure_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, saves = Training(), saver(tmp_path)
    training.steps(1)
    with monkeypatch.context() as patched:
        patched.setattr(directory, "fsync_files", full_disk)
        saves.save(training.state)
        training.steps(1)
        with pytest.raises(CheckpointError, match="cannot save iteration 1"):
            saves.save(training.state)
    assert list(tmp_path.iterdir()) == []


def test_a_defect_behind_the_training_is_no_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def defect(*_: object) -> None:
        raise KeyError("a defect")

    training, saves = Training(), saver(tmp_path)
    training.steps(1)
    monkeypatch.setattr(directory, "payload", defect)
    saves.save(training.state)
    with pytest.raises(CheckpointError, match="a defect"):
        saves.wait()
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("behind", [False, True])
def test_what_need_not_be_kept_is_deleted(tmp_path: Path, behind: bool) -> None:
    training, saves = Training(), saver(tmp_path, behind=behind, keep_last=1, keep_every=2)
    for _ in range(5):
        training.steps(1)
        saves.save(training.state)
    saves.wait()
    assert [path.name for path in directory.newest_first(tmp_path)] == [
        "iter_0000005",
        "iter_0000004",
        "iter_0000002",
    ]


def test_what_a_copy_refers_to_is_not_the_model(tmp_path: Path) -> None:
    from primus.trainer.checkpoint import snapshot
    from primus.trainer.checkpoint_write import Staging

    training = Training()
    training.steps(1)
    live = {t.untyped_storage().data_ptr() for t in training.state.chunks[0].parameters()}
    taken = snapshot(training.state, Staging())
    held = [part.data for parts in taken.tensors.values() for part in parts]
    assert held
    assert not live & {tensor.untyped_storage().data_ptr() for tensor in held}
