"""Tensors of a verified checkpoint, read straight into the memory that they are for.

torch's own reader reads each tensor into new memory, whose pages cost more than the reading, and
copies it from there.
"""

from __future__ import annotations

import io
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreLoadPlanner,
    TorchDistLoadShardedStrategy,
    _replace_sharded_keys_with_state_dict_keys,
    _replace_state_dict_keys_with_sharded_keys,
    _restore_dict_types,
    _unwrap_pyt_sharded_tensor,
    mcore_to_pyt_state_dict,
)
from torch import Tensor
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from primus.trainer.checkpoint_directory import readers

# What torch writes before the numbers of a tensor, or after them, is less.
_END = 2 << 10


class Strategy(TorchDistLoadShardedStrategy):
    """Megatron-core's way to load torch's format, but for who reads the files."""

    def __init__(self, index: Metadata) -> None:
        """`index`: the checkpoint's own, already read and checked."""
        super().__init__()
        self._index = index

    def load(self, sharded_state_dict: dict[str, Any], checkpoint_dir: Path) -> dict[str, Any]:
        """The state with what is stored in the place of its shards; collective."""
        shards = [s for s in nested_values(sharded_state_dict) if isinstance(s, ShardedTensor)]
        by_key, mapping, names = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict)
        wanted = mcore_to_pyt_state_dict(by_key, True)
        dcp_load(
            wanted,
            storage_reader=_Reader(checkpoint_dir, self._index),
            planner=MCoreLoadPlanner(
                shapes_validation_sharded_tensors=[
                    shard for shard in shards if not shard.allow_shape_mismatch
                ],
                allow_shape_mismatch_sharded_tensors={
                    shard.key: shard for shard in shards if shard.allow_shape_mismatch
                },
            ),
        )
        loaded = {key: _unwrap_pyt_sharded_tensor(value) for key, value in wanted.items()}
        state: dict[str, Any] = _replace_sharded_keys_with_state_dict_keys(loaded, mapping, names)
        _restore_dict_types(state, sharded_state_dict)
        return state


@dataclass(frozen=True)
class _Stored:
    """A tensor in a file.

    Attributes:
        shape: a tensor without memory, of its shape and strides and of no other storage.
        start: of its storage in the file, in bytes. end: of all that is stored of it.
    """

    shape: Tensor
    start: int
    end: int


class _Reader(FileSystemReader):
    """Reads several tensors at a time."""

    def __init__(self, path: Path, index: Metadata) -> None:
        super().__init__(path)
        self._index = index
        # By what torch has written in place of the tensor.
        self._shapes: dict[bytes, Tensor] = {}

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """The index that was given."""
        return self._index

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Any:
        """Read what is asked for, in the order of the files.

        Raises:
            OSError, ValueError: something cannot be read, or is not what the index says.
        """
        places = self.storage_data
        items = sorted(
            plan.items,
            key=lambda item: (
                places[item.storage_index].relative_path,
                places[item.storage_index].offset,
            ),
        )
        with ExitStack() as files, ThreadPoolExecutor(readers()) as pool:
            opened: dict[str, FileIO] = {}
            reads = []
            for item in items:
                place = places[item.storage_index]
                name = place.relative_path
                if name not in opened:
                    opened[name] = files.enter_context(open(Path(self.path, name), "rb", 0))
                file = opened[name]
                if item.type == LoadItemType.BYTE_IO:
                    content = io.BytesIO(os.pread(file.fileno(), place.length, place.offset))
                    planner.load_bytes(item, content)
                    continue
                part = _Part(file.fileno(), self._stored(file, place), item)
                target = planner.resolve_tensor(item).detach()
                if type(target) is Tensor:
                    reads.append(pool.submit(part.read_into, target))
                else:
                    # Of transformer-engine: the planner keeps one in mind at a time.
                    part.read_into(target)
                planner.commit_tensor(item, target)
            for read in reads:
                read.result()
        done: torch.futures.Future[None] = torch.futures.Future()
        done.set_result(None)
        return done

    def _stored(self, file: FileIO, place: Any) -> _Stored | Tensor:
        """Where the tensor is; the tensor itself where torch has to read it."""
        content: Any = _Ends(file.fileno(), place.offset, place.length)
        archive: Any = torch._C.PyTorchFileReader(content)
        order = archive.get_record("byteorder") if archive.has_record("byteorder") else b""
        if order.decode() != sys.byteorder or not archive.has_record("data/0"):
            content.seek(0)
            return torch.load(content, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
        written = archive.get_record("data.pkl")
        shape = self._shapes.get(written)
        if shape is None:
            content.seek(0)
            shape = torch.load(content, map_location="meta", weights_only=True)
            self._shapes[written] = shape
        start = place.offset + archive.get_record_offset("data/0")
        return _Stored(shape, start, place.offset + place.length)


class _Ends(io.RawIOBase):
    """A range of a file, both of whose ends have been read: all that torch asks for of a tensor.

    It asks some twenty times for a few bytes.
    """

    def __init__(self, file: int, offset: int, length: int) -> None:
        self._file, self._offset, self._length = file, offset, length
        self._head = os.pread(file, min(length, _END), offset)
        self._tail_at = max(0, length - _END)
        self._tail = os.pread(file, length - self._tail_at, offset + self._tail_at)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._at = offset + {os.SEEK_CUR: self._at, os.SEEK_END: self._length}.get(whence, 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        start, stop = self._at, min(self._at + len(buffer), self._length)
        if stop <= len(self._head):
            found = self._head[start:stop]
        elif start >= self._tail_at:
            found = self._tail[start - self._tail_at : stop - self._tail_at]
        else:
            found = os.pread(self._file, stop - start, self._offset + start)
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)


@dataclass(frozen=True)
class _Part:
    """What one item asks for of a stored tensor."""

    file: int
    stored: _Stored | Tensor
    item: ReadItem

    def read_into(self, target: Tensor) -> None:
        """Read it.

        Raises:
            OSError, ValueError: it cannot be read, or is not as large as the target.
        """
        whole = self.stored if isinstance(self.stored, Tensor) else self.stored.shape
        part = narrow_tensor_by_index(whole, self.item.storage_offsets, self.item.lengths)
        if part.shape != target.shape:
            raise ValueError(
                f"{self.item.storage_index.fqn}: {tuple(part.shape)} is stored, "
                f"{tuple(target.shape)} wanted"
            )
        if isinstance(self.stored, Tensor):
            target.copy_(part)
        elif not part.is_contiguous():
            memory = torch.empty(whole.untyped_storage().nbytes(), dtype=torch.uint8)
            self._read(memory, 0)
            found = memory.view(whole.dtype).as_strided(
                part.size(), part.stride(), part.storage_offset()
            )
            target.copy_(found)
        elif _is_plain(target) and target.dtype == part.dtype:
            self._read(target, int(part.storage_offset()) * part.element_size())
        else:
            found = torch.empty(part.shape, dtype=part.dtype)
            self._read(found, int(part.storage_offset()) * part.element_size())
            target.copy_(found)

    def _read(self, target: Tensor, begin: int) -> None:
        """Fill `target`, which is contiguous, with what begins so many bytes into the storage."""
        assert isinstance(self.stored, _Stored)
        memory = memoryview(target.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        place = self.stored.start + begin
        if place + len(memory) > self.stored.end:
            raise ValueError(f"{self.item.storage_index.fqn}: reaches beyond what is stored of it")
        while len(memory) > 0:
            count = os.preadv(self.file, [memory], place)
            if count == 0:
                raise ValueError(f"{self.item.storage_index.fqn}: its file has become shorter")
            memory, place = memory[count:], place + count


def _is_plain(target: Tensor) -> bool:
    return type(target) is Tensor and target.is_cpu and target.is_contiguous()
