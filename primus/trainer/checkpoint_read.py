"""Tensors of a checkpoint, read straight into the memory that they are for while files are hashed.

torch's own reader reads each tensor into new memory, whose pages cost more than the reading, and
copies it from there.
"""

from __future__ import annotations

import io
import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreLoadPlanner,
    TorchDistLoadShardedStrategy,
    _replace_sharded_keys_with_state_dict_keys,
    _replace_state_dict_keys_with_sharded_keys,
    _restore_dict_types,
    _unwrap_pyt_sharded_tensor,
    mcore_to_pyt_state_dict,
)
from torch import Tensor, distributed
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from primus.artifacts.manifest import AnyRecord
from primus.errors import ArtifactError
from primus.trainer import checkpoint_ranges as ranges
from primus.trainer.checkpoint_directory import verify_files
from primus.trainer.checkpoint_layout import Layout, look_at

T = TypeVar("T")


class Damaged(ArtifactError):
    """A checkpoint that cannot be loaded, and why; raised on all ranks alike."""


def together(verify: Callable[[], T]) -> T:
    """What `verify` gives, when it finds nothing wrong on any rank; collective.

    Raises:
        Damaged: it does, with what it finds on all ranks.
    """
    problem, found = None, None
    try:
        found = verify()
    except (ArtifactError, OSError) as error:
        problem = str(error)
    gathered: list[str | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, problem)
    problems = sorted({text for text in gathered if text})
    if problems:
        raise Damaged("; ".join(problems))
    return cast("T", found)


def merge_in_place(sharded_state: dict[str, Any]) -> None:
    """Have tensors that are stored in parts not be put together once more in other memory.

    Args:
        sharded_state: to load; its factories are changed.
    """
    for factory in nested_values(sharded_state):
        if isinstance(factory, ShardedTensorFactory):
            factory.merge_fn = partial(_merged, factory, factory.merge_fn)


def _merged(factory: ShardedTensorFactory, merge: Callable[[Any], Any], parts: Any) -> Any:
    """What `merge`, which undoes a split, makes: the whole where the parts are views of it."""
    # Not before: Megatron-core exchanges those in fp8 at the beginning of a load.
    whole = factory.data.detach()
    found = list(nested_values(parts)) if isinstance(parts, dict | list) else []
    if (
        all(type(tensor) is Tensor for tensor in (whole, *found))
        and {whole.untyped_storage().data_ptr()} == {p.untyped_storage().data_ptr() for p in found}
        and whole.numel() == sum(part.numel() for part in found)
    ):
        return whole
    return merge(parts)


class Strategy(TorchDistLoadShardedStrategy):
    """Megatron-core's way to load torch's format, but for who reads the files."""

    def __init__(self, index: Metadata, vouched: Mapping[str, AnyRecord]) -> None:
        """
        Args:
            index: the checkpoint's own, already read and checked.
            vouched: files of tensors that this rank verifies, by name; all ranks together, all.
        """
        super().__init__()
        self._index, self._vouched = index, vouched

    def load(self, sharded_state_dict: dict[str, Any], checkpoint_dir: Path) -> dict[str, Any]:
        """The state with what is stored in the place of its shards; collective.

        Raises:
            Damaged: some file is not what the manifest says; tensors may hold parts of it.
            CheckpointException: it is, and does not fit.
        """
        shards = [s for s in nested_values(sharded_state_dict) if isinstance(s, ShardedTensor)]
        by_key, mapping, names = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict)
        wanted = mcore_to_pyt_state_dict(by_key, True)
        planner = MCoreLoadPlanner(
            shapes_validation_sharded_tensors=[
                shard for shard in shards if not shard.allow_shape_mismatch
            ],
            allow_shape_mismatch_sharded_tensors={
                shard.key: shard for shard in shards if shard.allow_shape_mismatch
            },
        )
        reader = Reader(checkpoint_dir, self._index, self._vouched)
        try:
            dcp_load(wanted, storage_reader=reader, planner=planner)
        except CheckpointException as error:
            # It has come to all ranks, with what each of them found.
            met = [failure for failure, _ in error.failures.values()]
            found = {
                str(failure) for failure in met if isinstance(failure, ArtifactError | OSError)
            }
            if found:
                raise Damaged("; ".join(sorted(found))) from error
            # What is torn may look as if it did not fit.
            together(lambda: verify_files(Path(checkpoint_dir), self._vouched.items()))
            raise
        loaded = {key: _unwrap_pyt_sharded_tensor(value) for key, value in wanted.items()}
        state: dict[str, Any] = _replace_sharded_keys_with_state_dict_keys(loaded, mapping, names)
        _restore_dict_types(state, sharded_state_dict)
        return state


class Reader(FileSystemReader):
    """Reads what a plan asks for into its place, and the files that it verifies to their end."""

    def __init__(self, path: Path, index: Metadata, vouched: Mapping[str, AnyRecord]) -> None:
        super().__init__(path)
        self._index, self._vouched = index, vouched
        self._layouts: dict[Hashable, Layout] = {}

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """The index that was given."""
        return self._index

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Any:
        """Read what is asked for; objects are made when all that this rank verifies was right.

        Raises:
            ArtifactError: a file is damaged or cannot be read.
            ValueError, RuntimeError: something is not what the index says.
        """
        work = _Work(planner)
        heads = self._ask(work, plan.items, known=True)
        self._read(work, self._vouched)
        # Laid out in another way than tensors of the same shape: written by other means.
        self._ask(work, [i for head in heads if head.differs for i in head.items], known=False)
        self._read(work, {})
        for item, content in work.objects:
            planner.load_bytes(item, io.BytesIO(content.numpy().tobytes()))
        done: torch.futures.Future[None] = torch.futures.Future()
        done.set_result(None)
        return done

    def _read(self, work: _Work, vouched: Mapping[str, AnyRecord]) -> None:
        problems = ranges.read(Path(self.path), work.wanted, vouched)
        if problems:
            raise ArtifactError("; ".join(problems))
        work.wanted.clear()

    def _ask(self, work: _Work, items: Iterable[ReadItem], *, known: bool) -> list[_Head]:
        """Have `work` want the items; gives what must come before their tensors.

        Args:
            known: a tensor is taken to be laid out as the last one of its shape and type.
        """
        heads: dict[tuple[str, int], _Head] = {}
        for item in items:
            place = self.storage_data[item.storage_index]
            if item.type == LoadItemType.BYTE_IO:
                work.want_object(item, place)
                continue
            layout = self._layout(item, place, known=known)
            if layout is None:
                work.want_archive(item, place)
                continue
            work.want(item, place, layout)
            at = (place.relative_path, place.offset)
            if known and at not in heads:
                heads[at] = _Head(place.offset, layout.head)
                work.wanted[place.relative_path].append(heads[at])
            if known:
                heads[at].items.append(item)
        return list(heads.values())

    def _layout(self, item: ReadItem, place: Any, *, known: bool) -> Layout | None:
        """How the tensor is stored; None where torch has to read it."""
        stored, number = item.storage_index, item.storage_index.index
        tensor: Any = self._index.state_dict_metadata[stored.fqn]
        sizes = None if number is None else tensor.chunks[number].sizes
        kind = (place.length, sizes, tensor.properties.dtype)
        if not known or kind not in self._layouts:
            found = look_at(Path(self.path, place.relative_path), place)
            if found is None:
                return None
            self._layouts[kind] = found
        return self._layouts[kind]


class _Head(ranges.Range):
    """What comes before the numbers of a tensor.

    Attributes:
        items: what is read of the tensor. differs: it is not what was expected.
    """

    def __init__(self, start: int, expected: bytes) -> None:
        super().__init__(start, len(expected))
        self._expected, self._found = expected, bytearray(len(expected))
        self.items: list[ReadItem] = []
        self.differs = False

    def memory(self) -> memoryview:
        return memoryview(self._found)

    def ready(self) -> None:
        self.differs = self._found != self._expected


class _InPlace(ranges.Range):
    """Goes into a tensor, which is contiguous and in host memory."""

    def __init__(self, start: int, target: Tensor) -> None:
        super().__init__(start, target.nbytes)
        self._target = target

    def memory(self) -> memoryview:
        return memoryview(self._target.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]

    def ready(self) -> None:
        """It is where it belongs."""


class _Copied(ranges.Range):
    """Goes into memory of its own, and from there to `deliver`, as a flat tensor of bytes."""

    def __init__(self, start: int, length: int, deliver: Callable[[Tensor], None]) -> None:
        super().__init__(start, length)
        self._deliver = deliver
        self._found: Tensor | None = None

    def memory(self) -> memoryview:
        self._found = torch.empty(self.length, dtype=torch.uint8)
        return memoryview(self._found.numpy())  # type: ignore[arg-type]

    def ready(self) -> None:
        found, self._found = self._found, None
        assert found is not None
        self._deliver(found)


@dataclass
class _Work:
    """What is to be read.

    Attributes:
        wanted: ranges by name of the file. objects: what has been read of what is no tensor.
    """

    planner: LoadPlanner
    wanted: dict[str, list[ranges.Range]] = field(default_factory=lambda: defaultdict(list))
    objects: list[tuple[ReadItem, Tensor]] = field(default_factory=list)
    # Of transformer-engine's tensors the planner keeps one in mind at a time.
    planning: threading.Lock = field(default_factory=threading.Lock)

    def want_object(self, item: ReadItem, place: Any) -> None:
        """Something that is no tensor."""
        self._copied(place, 0, place.length, lambda found: self.objects.append((item, found)))

    def want_archive(self, item: ReadItem, place: Any) -> None:
        """A tensor that torch has to read."""

        def deliver(found: Tensor) -> None:
            content = io.BytesIO(found.numpy().tobytes())
            whole = torch.load(content, map_location="cpu", weights_only=True)
            self._put(item, _part(item, whole))

        self._copied(place, 0, place.length, deliver)

    def want(self, item: ReadItem, place: Any, layout: Layout) -> None:
        """A part of a tensor.

        Raises:
            ValueError: it is not as large as its target, or reaches beyond what is stored.
        """
        part = _part(item, layout.shape)
        target = self._resolved(item)
        if part.shape != target.shape:
            raise ValueError(
                f"{item.storage_index.fqn}: {tuple(part.shape)} is stored, "
                f"{tuple(target.shape)} wanted"
            )
        if part.numel() == 0:
            return
        last = sum(s * (n - 1) for s, n in zip(part.stride(), part.shape, strict=True))
        length = (last + 1) * part.element_size()
        begin = len(layout.head) + int(part.storage_offset()) * part.element_size()
        if begin + length > place.length:
            raise ValueError(f"{item.storage_index.fqn}: reaches beyond what is stored of it")
        if part.is_contiguous() and _is_plain(target) and target.dtype == part.dtype:
            found = _InPlace(place.offset + begin, target)
            self.wanted[place.relative_path].append(found)
            return

        def deliver(found: Tensor) -> None:
            self._put(item, found.view(part.dtype).as_strided(part.size(), part.stride()))

        self._copied(place, begin, length, deliver)

    def _copied(
        self, place: Any, begin: int, length: int, deliver: Callable[[Tensor], None]
    ) -> None:
        found = _Copied(place.offset + begin, length, deliver)
        self.wanted[place.relative_path].append(found)

    def _resolved(self, item: ReadItem) -> Tensor:
        target = self.planner.resolve_tensor(item).detach()
        self.planner.commit_tensor(item, target)
        return target

    def _put(self, item: ReadItem, part: Tensor) -> None:
        with self.planning:
            target = self.planner.resolve_tensor(item).detach()
            target.copy_(part)
            self.planner.commit_tensor(item, target)


def _part(item: ReadItem, whole: Tensor) -> Tensor:
    return narrow_tensor_by_index(whole, item.storage_offsets, item.lengths)


def _is_plain(target: Tensor) -> bool:
    return type(target) is Tensor and target.is_cpu and target.is_contiguous()
