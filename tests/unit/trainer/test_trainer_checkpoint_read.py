"""Reading into place gives what torch's own reader gives, and never what is not stored."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.serialization import set_crc32_options

from primus import pickles
from primus.artifacts.manifest import Blake3Record
from primus.trainer import checkpoint_read
from primus.trainer.checkpoint_layout import _END, _Ends, look_at
from primus.trainer.checkpoint_read import Reader

pytestmark = pytest.mark.usefixtures("single_rank")

STORED: dict[str, Callable[[], Tensor]] = {
    "float32": lambda: torch.randn(700, 300),
    "bfloat16": lambda: torch.randn(65, 3).bfloat16(),
    "bool": lambda: torch.rand(17) > 0.5,
    "int64": lambda: torch.arange(1000),
    "number": lambda: torch.tensor(3.5),
    "empty": lambda: torch.empty(0, 4),
    "transposed": lambda: torch.randn(40, 30).t(),
    "part of a larger one": lambda: torch.randn(90, 80)[10:50, 5:70],
}


def targets(name: str, stored: Tensor) -> dict[str, Tensor]:
    """Tensors to load it into: as it is, in another order in memory, of another type."""
    found = {"plain": torch.zeros(stored.shape, dtype=stored.dtype)}
    if stored.dim() == 2 and stored.numel():
        found["transposed"] = torch.zeros(stored.shape[::-1], dtype=stored.dtype).t()
        found["every other"] = torch.zeros(
            (stored.shape[0], 2 * stored.shape[1]), dtype=stored.dtype
        )[:, ::2]
    if name == "float32":
        found["of another type"] = torch.zeros(stored.shape, dtype=torch.float64)
    return found


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    torch.manual_seed(0)
    state = {name: make() for name, make in STORED.items()}
    save(state, storage_writer=FileSystemWriter(tmp_path))
    return tmp_path, state


def read(directory: Path, state: dict[str, Tensor]) -> None:
    load(state, storage_reader=Reader(directory, pickles.read_index(directory), {}))


@pytest.mark.parametrize("name", STORED)
def test_it_is_what_torch_reads(saved: tuple[Path, dict[str, Tensor]], name: str) -> None:
    directory, state = saved
    for kind, target in targets(name, state[name]).items():
        theirs = target.clone()
        load({name: theirs}, storage_reader=FileSystemReader(directory))
        place = target.data_ptr()
        read(directory, {name: target})
        assert torch.equal(target, theirs), kind
        assert torch.equal(target, state[name].to(target.dtype)), kind
        assert target.data_ptr() == place


def place_of(directory: Path, name: str) -> tuple[Any, Any]:
    index = pickles.read_index(directory)
    (place,) = (place for at, place in index.storage_data.items() if at.fqn == name)
    return index, place


def test_another_order_of_bytes(saved: tuple[Path, dict[str, Tensor]]) -> None:
    """torch itself would crash on it where it reads the shape alone."""
    directory, state = saved
    index, place = place_of(directory, "float32")
    path = directory / place.relative_path
    stored = io.BytesIO(path.read_bytes()[place.offset : place.offset + place.length])
    with zipfile.ZipFile(stored) as old, zipfile.ZipFile(made := io.BytesIO(), "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, b"big" if name.endswith("byteorder") else content)
    with open(path, "ab") as stream:
        place.offset, place.length = stream.tell(), stream.write(made.getvalue())
    target = torch.zeros_like(state["float32"])
    load({"float32": target}, storage_reader=Reader(directory, index, {}))
    swapped = torch.from_numpy(state["float32"].numpy().byteswap())
    assert torch.equal(target.view(torch.int32), swapped.view(torch.int32))


def test_tensors_of_one_shape_that_are_stored_in_other_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is looked at, and then the others are taken to be like it: those that are not are seen.

    With torch's own writer each holds a CRC-32; a transposed one has other strides.
    """
    state = {f"plain {number}": torch.randn(40, 30) for number in range(4)}
    state |= {f"transposed {number}": torch.randn(30, 40).t() for number in range(3)}
    looks = 0

    def counted(*args: Any) -> Any:
        nonlocal looks
        looks += 1
        return look_at(*args)

    monkeypatch.setattr(checkpoint_read, "look_at", counted)
    for crc in (True, False):
        set_crc32_options(crc)
        try:
            save(state, storage_writer=FileSystemWriter(tmp_path / f"{crc}"))
        finally:
            set_crc32_options(True)
        wanted = {name: torch.zeros(40, 30) for name in state}
        index = pickles.read_index(tmp_path / f"{crc}")
        files = {path.name: Blake3Record.of(path) for path in (tmp_path / f"{crc}").glob("__*")}
        for vouched in (files, {}):
            looks = 0
            for tensor in wanted.values():
                tensor.zero_()
            load(wanted, storage_reader=Reader(tmp_path / f"{crc}", index, vouched))
            assert all(torch.equal(wanted[name], state[name]) for name in state)
            assert 1 < looks < 9


def test_two_parts_of_one_tensor(saved: tuple[Path, dict[str, Tensor]]) -> None:
    """Whoever wants overlapping parts gets both, from a file that is hashed on the way too."""
    directory, state = saved
    index, _ = place_of(directory, "float32")
    chunk = index.state_dict_metadata["float32"].chunks[0]
    files = {path.name: Blake3Record.of(path) for path in directory.glob("__*")}
    targets = [torch.zeros(300, 300), torch.zeros(500, 300), torch.zeros(700, 100)]
    offsets = [(100, 0), (200, 0), (0, 50)]
    for vouched in (files, {}):
        for target in targets:
            target.zero_()
        reader = Reader(directory, index, vouched)
        reader.set_up_storage_reader(index, True)
        items = [
            ReadItem(
                type=LoadItemType.TENSOR,
                dest_index=MetadataIndex(f"{number}"),
                dest_offsets=torch.Size((0, 0)),
                storage_index=MetadataIndex("float32", chunk.offsets, 0),
                storage_offsets=torch.Size(offset),
                lengths=target.shape,
            )
            for number, (target, offset) in enumerate(zip(targets, offsets, strict=True))
        ]
        planner = DefaultLoadPlanner()
        planner.state_dict = {f"{number}": target for number, target in enumerate(targets)}
        reader.read_data(LoadPlan(items), planner).wait()
        whole = state["float32"]
        assert torch.equal(targets[0], whole[100:400])
        assert torch.equal(targets[1], whole[200:700])
        assert torch.equal(targets[2], whole[:, 50:150])


def test_numbers_beyond_what_is_stored_are_refused(saved: tuple[Path, dict[str, Tensor]]) -> None:
    """A description that says more than follows it: what lies behind belongs to others."""
    directory, state = saved
    index, place = place_of(directory, "float32")
    made = io.BytesIO()
    torch.save(torch.zeros(700, 300), made)
    with zipfile.ZipFile(made) as old, zipfile.ZipFile(forged := io.BytesIO(), "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, content[:16] if name.endswith("data/0") else content)
    with open(directory / place.relative_path, "ab") as stream:
        place.offset, place.length = stream.tell(), stream.write(forged.getvalue())
        stream.write(os.urandom(1 << 20))
    with pytest.raises(CheckpointException, match="beyond what is stored"):
        load(
            {"float32": torch.zeros_like(state["float32"])},
            storage_reader=Reader(directory, index, {}),
        )


def test_a_file_that_became_shorter_is_an_error(saved: tuple[Path, dict[str, Tensor]]) -> None:
    directory, state = saved
    index, place = place_of(directory, "float32")
    path = directory / place.relative_path
    reader = Reader(directory, index, {})
    layout = look_at(path, place)
    os.truncate(path, place.offset + place.length // 2)
    reader._layout = lambda *_, **__: layout  # type: ignore[method-assign]
    with pytest.raises(CheckpointException, match="become shorter"):
        load({"float32": torch.zeros_like(state["float32"])}, storage_reader=reader)


@pytest.mark.parametrize("copied", [False, True], ids=["views", "copies"])
def test_parts_that_were_read_into_their_tensor_stay_there(copied: bool) -> None:
    data = torch.arange(12.0).reshape(4, 3)

    def build(key: str, whole: Tensor, *_: Any) -> list[ShardedTensor]:
        parts = [part.clone() if copied else part for part in whole.chunk(2)]
        return [ShardedTensor.from_rank_offsets(key, part) for part in parts]

    factory = ShardedTensorFactory("w", data, build, torch.cat)
    checkpoint_read.merge_in_place({"model": {"w": factory}})
    read = [part.data for part in factory.build()]
    for number, part in enumerate(read):
        part.fill_(number)
    merged = factory.merge_fn(read)
    assert merged.tolist() == [[0.0] * 3] * 2 + [[1.0] * 3] * 2
    assert (merged.data_ptr() == data.data_ptr()) is not copied
    assert factory.merge_fn(read[:1]).data_ptr() != data.data_ptr(), "not all of it"


@pytest.mark.parametrize("length", [0, 1, _END - 1, _END, _END + 1, 2 * _END, 5 * _END])
def test_both_ends_of_a_range_read_like_the_whole(tmp_path: Path, length: int) -> None:
    content = os.urandom(length + 200)
    (tmp_path / "file").write_bytes(content)
    file = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        ends, whole = _Ends(file, 100, length), io.BytesIO(content[100 : 100 + length])
        for at, whence, size in (
            *((0, 0, 10), (3, 0, _END), (0, 1, _END), (-5, 2, 20), (-_END, 2, 7), (0, 2, 4)),
            *((_END - 2, 0, 4), (length // 2, 0, length), (0, 0, length)),
        ):
            if whence == os.SEEK_END and -at > length:
                continue
            assert ends.seek(at, whence) == whole.seek(at, whence)
            assert ends.read(size) == whole.read(size), (at, whence, size)
            assert ends.tell() == whole.tell()
    finally:
        os.close(file)
