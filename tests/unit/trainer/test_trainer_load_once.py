"""A load reads each file once; what turns out to be damaged leaves no trace in what is loaded."""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer_checkpoint import ABOUT, Training

from primus import pickles
from primus.errors import CheckpointError, UserError

pytestmark = pytest.mark.usefixtures("single_rank", "eager")

KEY = str(ABOUT["key"])
SHARD = "__0_0.distcp"
LARGE = {"hidden_size": 256, "ffn_hidden_size": 512, "num_attention_heads": 8, "bf16": True}


def files_of(state: Any, root: Path) -> dict[str, bytes]:
    """All that a checkpoint holds of a state: one rank writes the same bytes of the same state."""
    from primus.trainer.checkpoint import save

    written = save(state, root, ABOUT)
    return {p.name: p.read_bytes() for p in written.iterdir() if p.name != "manifest.json"}


def flip(path: Path, at: int) -> None:
    with open(path, "r+b") as stream:
        stream.seek(at)
        (byte,) = stream.read(1)
        stream.seek(at)
        stream.write(bytes([byte ^ 1]))


def places(directory: Path, kind: str) -> list[Any]:
    """Where things are whose names hold `kind`, largest last."""
    stored = pickles.read_index(directory).storage_data.items()
    return sorted((place for at, place in stored if kind in at.fqn), key=lambda place: place.length)


def bytes_read() -> int:
    """By all system calls of this process."""
    found = re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())
    assert found
    return int(found[1])


@pytest.mark.parametrize("sharded", [True, False], ids=["sharded optimizer", "plain optimizer"])
def test_a_load_reads_everything_once(tmp_path: Path, sharded: bool) -> None:
    from primus.trainer.checkpoint import load_newest, save

    training = Training(use_distributed_optimizer=sharded, **LARGE)
    training.steps(1)
    path = save(training.state, tmp_path, ABOUT)
    size = sum(file.stat().st_size for file in path.iterdir())
    assert size > 15 << 20
    # Modules that are imported at the first load are files too.
    load_newest(training.state, tmp_path, KEY)
    before = bytes_read()
    assert load_newest(training.state, tmp_path, KEY) == path.name
    assert size <= bytes_read() - before <= 1.1 * size


def in_a_weight(newest: Path) -> None:
    place = places(newest, "linear_fc2.weight")[-1]
    flip(newest / SHARD, place.offset + place.length // 2)


def in_a_moment(newest: Path) -> None:
    place = places(newest, "exp_avg_sq")[-1]
    flip(newest / SHARD, place.offset + place.length // 2)


def in_the_head_of_a_tensor(newest: Path) -> None:
    flip(newest / SHARD, places(newest, "linear_fc2.weight")[-1].offset + 1)


def in_the_description_of_a_tensor(newest: Path) -> None:
    place = places(newest, "linear_fc2.weight")[-1]
    content = (newest / SHARD).read_bytes()
    flip(newest / SHARD, content.index(b"Storage", place.offset))


def in_an_object(newest: Path) -> None:
    place = places(newest, "generators")[-1]
    flip(newest / SHARD, place.offset + place.length // 2)


def in_the_first_byte(newest: Path) -> None:
    flip(newest / SHARD, 0)


def in_the_last_byte(newest: Path) -> None:
    flip(newest / SHARD, (newest / SHARD).stat().st_size - 1)


FLIPPED = [
    *(in_a_weight, in_a_moment, in_the_head_of_a_tensor, in_the_description_of_a_tensor),
    *(in_an_object, in_the_first_byte, in_the_last_byte),
]


@pytest.mark.fault(
    8,
    injected="a flipped bit in a weight, a moment, the head of a tensor, an object, at either end",
    observed="the hash is named; the checkpoint before is loaded bit for bit; with none before "
    "nothing but tensors has changed",
)
@pytest.mark.parametrize("change", FLIPPED, ids=lambda change: change.__name__)
def test_the_one_before_is_loaded_bit_for_bit(
    root: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    from primus.trainer import checkpoint

    older, newest = sorted(root.iterdir())
    change(newest)
    found, wanted = Training(seed=5).state, Training(seed=6).state
    assert checkpoint.load_newest(found, root, KEY) == older.name
    (warned,) = [r.getMessage() for r in caplog.records if "skipping" in r.getMessage()]
    assert f"{newest / SHARD}: BLAKE3 " in warned
    found_files = files_of(found, tmp_path / "found")
    shutil.rmtree(newest)
    assert checkpoint.load_newest(wanted, root, KEY) == older.name
    assert found_files == files_of(wanted, tmp_path / "wanted")


@pytest.mark.parametrize("change", FLIPPED, ids=lambda change: change.__name__)
def test_nothing_but_tensors_is_taken_from_a_damaged_one(
    root: Path, change: Callable[[Path], None]
) -> None:
    from primus.trainer import checkpoint

    older, newest = sorted(root.iterdir())
    change(newest)
    shutil.rmtree(older)
    state = Training().state
    random.seed(3)
    before = (state.scheduler.state_dict(), state.iteration, state.consumed_samples)
    generators = (torch.get_rng_state(), random.getstate())
    with pytest.raises(CheckpointError, match="none of 1 checkpoints is good"):
        checkpoint.load_newest(state, root, KEY)
    assert (state.scheduler.state_dict(), state.iteration, state.consumed_samples) == before
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    with pytest.raises(UserError, match=r"BLAKE3 .*Fix: name an earlier checkpoint"):
        checkpoint.load_other(state, newest, {"tensor_model_parallel_size": 1})


def test_an_object_that_is_torn_after_it_was_looked_at_is_not_made(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from primus.trainer import checkpoint, checkpoint_read

    older, newest = sorted(root.iterdir())
    check, made = pickles.check, []

    def check_then_tear(directory: Path, *args: Any, **kwargs: Any) -> Any:
        index = check(directory, *args, **kwargs)
        if directory == newest:
            in_an_object(newest)
        return index

    planner = checkpoint_read.MCoreLoadPlanner
    load_bytes = planner.load_bytes

    def counted(*args: Any) -> None:
        made.append(newest)
        load_bytes(*args)

    monkeypatch.setattr(pickles, "check", check_then_tear)
    monkeypatch.setattr(planner, "load_bytes", counted)
    state = Training().state
    assert checkpoint.load_newest(state, root, KEY) == older.name
    assert f"{newest / SHARD}: BLAKE3 " in caplog.text
    assert len(made) == len(places(older, "generators") + places(older, "_extra_state")), "once"


@pytest.mark.fault(
    7,
    injected="a shard that is cut short, or whose disk fails, while it is read",
    observed="it is named, the checkpoint before is loaded bit for bit",
)
@pytest.mark.parametrize("way", ["cut short", "EIO"])
def test_a_file_that_fails_while_it_is_read(
    root: Path,
    tmp_path: Path,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from primus.trainer import checkpoint, checkpoint_ranges

    older, newest = sorted(root.iterdir())
    preadv = os.preadv

    def fail(file: int, parts: Any, at: int) -> int:
        here = os.readlink(f"/proc/self/fd/{file}") == str(newest / SHARD)
        if here and at > 200_000:
            if way == "EIO":
                raise OSError(5, "Input/output error")
            os.truncate(newest / SHARD, 200_000)
        return preadv(file, parts, at)

    monkeypatch.setattr(checkpoint_ranges, "_PIECE", 100_000)
    monkeypatch.setattr(os, "preadv", fail)
    found, wanted = Training(seed=5).state, Training(seed=6).state
    assert checkpoint.load_newest(found, root, KEY) == older.name
    said = "has become shorter while it was read" if way == "cut short" else "Input/output error"
    assert re.search(rf"skipping a damaged checkpoint: {newest / SHARD}: .*{said}", caplog.text)
    found_files = files_of(found, tmp_path / "found")
    shutil.rmtree(newest)
    assert checkpoint.load_newest(wanted, root, KEY) == older.name
    assert found_files == files_of(wanted, tmp_path / "wanted")


def test_a_disk_that_fails_where_a_tensor_is_looked_for(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from primus.trainer import checkpoint, checkpoint_layout

    older, newest = sorted(root.iterdir())
    pread = os.pread

    def fail(file: int, length: int, at: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{file}") == str(newest / SHARD):
            raise OSError(5, "Input/output error")
        return pread(file, length, at)

    monkeypatch.setattr(checkpoint_layout.os, "pread", fail)
    assert checkpoint.load_newest(Training().state, root, KEY) == older.name
    assert f"{newest / SHARD}: cannot be read: Input/output error" in caplog.text


def test_one_that_does_not_fit_is_not_called_damaged(root: Path) -> None:
    from primus.trainer.checkpoint import load_other

    other = Training(hidden_size=128).state
    with pytest.raises(UserError, match="does not fit this model"):
        load_other(other, max(root.iterdir()), {"tensor_model_parallel_size": 1})
