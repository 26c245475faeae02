"""A checkpoint taken from the state of all ranks, then written: at once, or behind the training.

What is taken refers to the model's own tensors, or, with a `Staging`, to copies of them. Either way
the same files come of it, byte for byte.
"""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch import Tensor, distributed
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _item_size
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, WriteItem
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.serialization import get_crc32_options, set_crc32_options

from primus.artifacts.manifest import Blake3Record
from primus.artifacts.run import CheckpointManifest
from primus.errors import CheckpointError, PrimusError
from primus.trainer import checkpoint_directory as directory
from primus.trainer import checkpoint_space as space
from primus.trainer.checkpoint_stream import SyncedFiles

Group = distributed.ProcessGroup | None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a checkpoint will hold of this rank.

    Attributes:
        tensors: parts by name. objects: serialised, by name.
        common: what is the same on all ranks, serialised.
        progress: iteration, consumed samples and tokens: fields of the manifest.
        size: bytes that this rank will write, a little too many.
    """

    tensors: dict[str, list[ShardedTensor]]
    objects: dict[str, io.BytesIO]
    common: bytes
    progress: dict[str, int]
    size: int

    def as_torch(self) -> dict[str, Any]:
        """Tensors and objects as torch's DCP takes them."""
        return {**mcore_to_pyt_state_dict(dict(self.tensors), False), **self.objects}


class Staging:
    """Buffers in host memory that tensors are copied into, kept from one snapshot to the next."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], Tensor] = {}

    def hold(self, shards: Iterable[ShardedTensor]) -> None:
        """Have `shards` refer to copies of their tensors; returns when the copies are complete."""
        on_device = False
        for shard in shards:
            source = shard.data.detach()
            buffer = self._buffer((shard.key, shard.global_offset), source)
            buffer.copy_(source, non_blocking=True)
            shard.data = buffer
            on_device |= source.is_cuda
        if on_device:
            torch.cuda.synchronize()

    def _buffer(self, name: tuple[Any, ...], source: Tensor) -> Tensor:
        found = self._buffers.get(name)
        if found is None or found.shape != source.shape or found.dtype != source.dtype:
            # Pinned, a copy from a GPU runs at the speed of its bus.
            found = torch.empty(source.shape, dtype=source.dtype, pin_memory=source.is_cuda)
            self._buffers[name] = found
        return found


def take(
    sharded_state: dict[str, Any], progress: dict[str, int], staging: Staging | None = None
) -> Snapshot:
    """What a checkpoint of Megatron's `sharded_state` will hold of this rank."""
    sharded, common = save_preprocess(sharded_state, validate_access_integrity=False)
    grouped, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded, keep_only_main_replica=True)
    tensors = {
        name: parts for name, parts in grouped.items() if isinstance(parts[0], ShardedTensor)
    }
    parts = [part for several in tensors.values() for part in several]
    if staging is not None:
        staging.hold(parts)
    torch.save(common, serialised := io.BytesIO())
    others = {name: parts for name, parts in grouped.items() if name not in tensors}
    objects: dict[str, io.BytesIO] = mcore_to_pyt_state_dict(others, False)
    return Snapshot(
        tensors=tensors,
        objects=objects,
        common=serialised.getvalue(),
        progress=progress,
        size=sum(part.data.nbytes for part in parts)
        + sum(packed.getbuffer().nbytes for packed in objects.values())
        + len(grouped) * space.BYTES_PER_TENSOR
        + serialised.tell(),
    )


def write(
    snapshot: Snapshot,
    root: Path,
    about: dict[str, Any],
    may_write: Callable[[], None] = lambda: None,
    group: Group = None,
) -> Path:
    """Write, hash, sync and publish a checkpoint; collective over all ranks of `group`.

    Args:
        root: the run's checkpoint directory.
        about: the fields of `CheckpointManifest` that the caller knows.
        may_write: called on the first rank before it removes, makes or publishes anything; it
            raises where another process owns the run by now.

    Returns:
        the published directory.

    Raises:
        CheckpointError: there is too little space, or some rank could not write; nothing was
            published, the temporary directory is removed and earlier checkpoints are as they were.
    """
    iteration, attempt = snapshot.progress["iteration"], about["attempt"]
    temporary = directory.temporary(root, iteration, attempt)
    sizes = _gathered(snapshot.size, group)

    def prepare() -> None:
        may_write()
        directory.remove_unfinished(root)
        space.require(root, sum(sizes) + space.BYTES_BESIDES)
        temporary.mkdir(parents=True)

    def publish() -> None:
        may_write()
        directory.publish(root, _manifest(snapshot, about, files))

    try:
        _on_leader(prepare, group)
        records = write_files(snapshot, temporary, group)
        files = _hash_together(temporary, records, group)
        _on_leader(publish, group)
    except (OSError, RuntimeError, CheckpointException, CheckpointError) as error:
        # Perhaps on this rank alone; the others then wait for it, and torchrun ends them.
        if distributed.get_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"{root}: cannot save iteration {iteration}: {first_cause(error)}"
        ) from error
    return root / directory.name_of(iteration)


def write_files(snapshot: Snapshot, target: Path, group: Group = None) -> dict[str, Blake3Record]:
    """Write the files of a checkpoint, but its manifest, into an existing directory; collective.

    Returns:
        records by name of what this rank has written and synced; small files may be missing.

    Raises:
        OSError, RuntimeError, CheckpointException: some rank could not.
    """

    def write_common() -> None:
        (target / COMMON_STATE_FNAME).write_bytes(snapshot.common)
        save_config(CheckpointingConfig("torch_dist", 1), str(target))

    _on_leader(write_common, group)
    writer = _Writer(target)
    with _no_checksums():
        dcp_save(
            snapshot.as_torch(),
            storage_writer=writer,
            planner=_Planner(dedup_replicated_tensors=False, flatten_state_dict=False),
            process_group=group,
        )
    return writer.files.records


@contextmanager
def _no_checksums() -> Iterator[None]:
    """Without the CRC-32 of tensors: torch never reads it, and the hash of the file does more."""
    before = get_crc32_options()
    set_crc32_options(False)
    try:
        yield
    finally:
        set_crc32_options(before)


class _Writer(FileSystemWriter):
    """torch's format, written by this process.

    Upstream forks a writer and starts a manager process: 4 s at the first save, orphans when the
    rank is killed, and a rank that waits for ever when the writer is.

    Attributes:
        files: where it writes.
    """

    def __init__(self, target: Path) -> None:
        super().__init__(target, thread_count=1, sync_files=False)
        self.fs = self.files = SyncedFiles()

    def storage_meta(self) -> StorageMeta | None:
        """Nothing: a path and a random number would make the same state another file."""
        return None


class _Planner(MCoreSavePlanner):
    """Upstream's plan, the same for a tensor on a GPU and for its staged copy."""

    def create_local_plan(self) -> SavePlan:
        """In order of size, as torch writes what is on a GPU; the place of a tensor is left out."""
        plan: SavePlan = super().create_local_plan()
        for item in plan.items:
            if item.tensor_data is not None:
                item.tensor_data.properties.pin_memory = False
        plan.items.sort(key=lambda item: _item_size(item) if item.tensor_data else 0)
        return plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        """A part of a larger memory as a tensor of its own: torch would write a copy of it."""
        found: Tensor | io.BytesIO = super().resolve_data(write_item)
        if isinstance(found, Tensor) and found.is_cpu and found.numel() and found.is_contiguous():
            plain = found.detach().reshape(-1).view(torch.uint8).numpy()
            return torch.frombuffer(plain, dtype=found.dtype).view(found.shape)
        return found


def first_cause(error: BaseException) -> str:
    """The cause in one line, without the tracebacks of all ranks that torch's exception holds."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (first, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {first}"
    if isinstance(error, PrimusError):
        return str(error)
    return f"rank {distributed.get_rank()}: {error}"


def _gathered(value: Any, group: Group) -> list[Any]:
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, value, group=group)
    return found


def _on_leader(action: Callable[[], None], group: Group) -> None:
    """Do it on the first rank; collective.

    Raises:
        CheckpointError: the first rank could not, said on all ranks. Errors of other kinds, that
            another process owns the run, are raised there as they are.
    """
    error: OSError | PrimusError | None = None
    if distributed.get_rank() == 0:
        try:
            action()
        except (OSError, PrimusError) as caught:
            error = caught
    box = [first_cause(error) if error is not None else None]
    distributed.broadcast_object_list(box, src=0, group=group)
    if isinstance(error, PrimusError):
        raise error
    if box[0] is not None:
        raise CheckpointError(box[0]) from error


def _hash_together(
    temporary: Path, written: dict[str, Blake3Record], group: Group
) -> dict[str, Blake3Record]:
    """Sync and hash what was not on the way: each rank its own files.

    Args:
        written: records by name of those that were.

    Raises:
        CheckpointError: some rank could not; the same on all.
    """
    problem, records = None, {}
    own = {str(path.relative_to(temporary)): path for path in _own_files(temporary)}
    try:
        directory.fsync_files(path for name, path in own.items() if name not in written)
        records = {name: written.get(name) or Blake3Record.of(path) for name, path in own.items()}
    except OSError as error:
        problem = first_cause(error)
    gathered = _gathered((problem, records), group)
    problems = [text for text, _ in gathered if text]
    if problems:
        raise CheckpointError("; ".join(problems))
    return {name: record for _, part in gathered for name, record in part.items()}


def _own_files(temporary: Path) -> list[Path]:
    """Files that torch's writer of this rank has made; on the first rank also those of no rank."""
    rank = distributed.get_rank()
    return [path for path in directory.payload(temporary) if directory.rank_of(path.name) == rank]


def _manifest(
    snapshot: Snapshot, about: dict[str, Any], files: dict[str, Blake3Record]
) -> CheckpointManifest:
    return CheckpointManifest(
        created=time.time(),
        world_size=distributed.get_world_size(),
        files=files,
        **snapshot.progress,
        **about,
    )
