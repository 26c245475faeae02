"""Saving and loading the whole training state, together on all ranks."""

from __future__ import annotations

import logging
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from megatron.core import dist_checkpointing, tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group
from torch import distributed
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from primus.artifacts.manifest import FileRecord
from primus.artifacts.run import CheckpointManifest
from primus.errors import ArtifactError, CheckpointError, UserError
from primus.trainer import checkpoint_directory as directory
from primus.trainer.fully_sharded import holder
from primus.trainer.optimizer_state import adapt, ask_for_saved_names

logger = logging.getLogger(__name__)


def _metadata() -> dict[str, Any]:
    # Optimizer state in the shape of the parameters, so that it loads at other layouts too.
    # Upstream writes process groups into this dictionary: a new one for every call.
    return ensure_metadata_has_dp_cp_group({"distrib_optim_sharding_type": "fully_reshardable"})  # type: ignore[no-any-return]


@dataclass(kw_only=True)
class TrainingState:
    """Everything that a checkpoint holds; the objects are changed in place by a load."""

    chunks: list[Any]
    optimizer: Any
    scheduler: Any
    iteration: int = 0
    consumed_samples: int = 0
    consumed_tokens: int = 0
    skipped_iterations: int = 0


class _InProcessSave(TorchDistSaveShardedStrategy):
    """Upstream's format, written by this process.

    Upstream forks a writer and starts a manager process: 4 s at the first save, orphans when the
    rank is killed, and a rank that waits for ever when the writer is.
    """

    def save(self, sharded_state_dict: Any, checkpoint_dir: Path) -> None:
        """Write the shards of this rank; rank 0 writes the index."""
        sharded_state_dict, _, _ = _replace_state_dict_keys_with_sharded_keys(
            sharded_state_dict, self.keep_only_main_replica
        )
        dcp_save(
            mcore_to_pyt_state_dict(sharded_state_dict, False),
            storage_writer=FileSystemWriter(checkpoint_dir, thread_count=1, sync_files=True),
            planner=MCoreSavePlanner(
                dedup_replicated_tensors=not self.keep_only_main_replica, flatten_state_dict=False
            ),
        )


def save(
    state: TrainingState,
    root: Path,
    about: dict[str, Any],
    may_write: Callable[[], None] = lambda: None,
) -> Path:
    """Write, hash, sync and publish a checkpoint; collective over all ranks.

    Args:
        root: the run's checkpoint directory.
        about: the fields of `CheckpointManifest` that the caller knows.
        may_write: called on the first rank before it removes, makes or publishes anything; it
            raises where another process owns the run by now.

    Returns:
        the published directory.

    Raises:
        CheckpointError: some rank could not write; nothing was published, the temporary
            directory is removed and earlier checkpoints are as they were.
    """
    temporary = directory.temporary(root, state.iteration, about["attempt"])
    if distributed.get_rank() == 0:
        may_write()
        directory.make_temporary(root, state.iteration, about["attempt"])
    distributed.barrier()
    try:
        dist_checkpointing.save(
            _sharded_state(state, is_loading=False),
            str(temporary),
            sharded_strategy=_InProcessSave("torch_dist", 1, thread_count=1),
            validate_access_integrity=False,
        )
    except (OSError, RuntimeError, CheckpointException) as error:
        # Perhaps on this rank alone; the others then wait for it, and the agent ends them.
        raise _failed(temporary, state.iteration, [_first_cause(error)]) from error
    distributed.barrier()
    problem, records = None, {}
    try:
        records = _hash_share(temporary)
    except OSError as error:
        problem = _first_cause(error)
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, (problem, records))
    problems = [text for text, _ in gathered if text]
    if not problems and distributed.get_rank() == 0:
        files = {name: record for _, part in gathered for name, record in part.items()}
        may_write()
        problems = _publish(state, root, about, files)
    distributed.broadcast_object_list(problems_box := [problems], src=0)
    if problems_box[0]:
        raise _failed(temporary, state.iteration, problems_box[0])
    return root / directory.name_of(state.iteration)


def _first_cause(error: BaseException) -> str:
    # torch's exception, no Exception but a BaseException, holds those of all ranks and prints
    # their tracebacks.
    if isinstance(error, CheckpointException) and error.failures:
        rank, (first, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {first}"
    return f"rank {distributed.get_rank()}: {error}"


def _failed(temporary: Path, iteration: int, problems: list[str]) -> CheckpointError:
    if distributed.get_rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
    return CheckpointError(
        f"{temporary.parent}: cannot save iteration {iteration}: {'; '.join(problems)}"
    )


def _publish(
    state: TrainingState, root: Path, about: dict[str, Any], files: dict[str, FileRecord]
) -> list[str]:
    manifest = CheckpointManifest(
        iteration=state.iteration,
        consumed_samples=state.consumed_samples,
        created=time.time(),
        world_size=distributed.get_world_size(),
        files=files,
        **about,
    )
    try:
        directory.publish(root, manifest)
    except CheckpointError as error:
        return [str(error)]
    return []


def _hash_share(temporary: Path) -> dict[str, FileRecord]:
    """Sync and hash every world-size-th file, so that the ranks share the work."""
    share = directory.payload(temporary)[distributed.get_rank() :: distributed.get_world_size()]
    directory.fsync_files(share)
    return {str(path.relative_to(temporary)): FileRecord.of(path) for path in share}


def load_newest(state: TrainingState, root: Path, key: str) -> str | None:
    """Load the newest checkpoint that verifies; collective over all ranks.

    Damaged checkpoints are skipped with a warning that names them.

    Returns:
        the name of the loaded checkpoint; None where there is no checkpoint at all.

    Raises:
        CheckpointError: checkpoints exist, but none is good.
    """
    candidates = directory.newest_first(root)
    for candidate in candidates:
        problems = _verify_together(candidate, key)
        if not problems:
            _load(state, candidate, generators=True)
            return candidate.name
        if distributed.get_rank() == 0:
            logger.warning("skipping a damaged checkpoint: %s", "; ".join(problems))
    if candidates:
        raise CheckpointError(
            f"{root}: none of {len(candidates)} checkpoints is good, and training does not start "
            "again silently at iteration 0. Fix: restore a checkpoint, or move the directory away"
        )
    return None


def load_other(state: TrainingState, source: Path, layout: dict[str, int]) -> CheckpointManifest:
    """Load a checkpoint of another run, saved at any layout; collective over all ranks.

    The states of the random generators belong to ranks: they are loaded where the layout is the
    same, and are left as they are where it is not.

    Args:
        source: a checkpoint, a directory of checkpoints, or a run; of several the newest.
        layout: of this run, as `parallel.layout` gives it.

    Returns:
        the manifest of the loaded checkpoint.

    Raises:
        UserError: there is no checkpoint, it is damaged, or it does not fit the model.
    """
    candidates = [source] if directory.iteration_of(source) is not None else []
    for root in (source, source / "checkpoints"):
        candidates += directory.newest_first(root)
    if not candidates:
        raise UserError(
            f"load_checkpoint = {source}: holds no checkpoint. Fix: name a run or a checkpoint"
        )
    chosen = candidates[0]
    problems = _verify_together(chosen, None)
    if problems:
        raise UserError(
            f"load_checkpoint = {source}: {'; '.join(problems)}. Fix: name an earlier checkpoint"
        )
    manifest = directory.load_manifest(chosen, None)
    try:
        _load(state, chosen, generators=manifest.layout == layout)
    except (CheckpointException, KeyError, RuntimeError, ValueError) as error:
        raise UserError(
            f"load_checkpoint = {chosen}: does not fit this model: {_first_cause(error)[:200]}. "
            "Fix: the keys of the model and of its precision must be those of the checkpoint"
        ) from error
    return manifest


def _verify_together(candidate: Path, key: str | None) -> list[str]:
    problem = None
    rank, world = distributed.get_rank(), distributed.get_world_size()
    try:
        manifest = directory.load_manifest(candidate, key)
        directory.verify_files(candidate, sorted(manifest.files.items())[rank::world])
    except ArtifactError as error:
        problem = str(error)
    gathered: list[str | None] = [None] * world
    distributed.all_gather_object(gathered, problem)
    return sorted({text for text in gathered if text})


def _load(state: TrainingState, source: Path, *, generators: bool) -> None:
    wanted = _sharded_state(state, is_loading=True)
    if not generators:
        del wanted["generators"]
    saved = set(dist_checkpointing.load_tensors_metadata(str(source)))
    ask_for_saved_names(state.optimizer, wanted["optimizer"], saved)
    loaded = dist_checkpointing.load(wanted, str(source))
    for number, chunk in enumerate(state.chunks):
        holder(chunk).load_state_dict(loaded[f"model{number}"], strict=True)
    adapt(state.optimizer, loaded["optimizer"])
    state.optimizer.load_state_dict(loaded["optimizer"])
    state.scheduler.load_state_dict(loaded["scheduler"])
    for name, value in loaded["progress"].items():
        setattr(state, name, value)
    if generators:
        _set_generators(loaded["generators"])


def _sharded_state(state: TrainingState, *, is_loading: bool) -> dict[str, Any]:
    models = {
        f"model{number}": holder(chunk).sharded_state_dict(metadata=_metadata())
        for number, chunk in enumerate(state.chunks)
    }
    return {
        **models,
        "optimizer": state.optimizer.sharded_state_dict(
            models, is_loading=is_loading, metadata=_metadata()
        ),
        "scheduler": state.scheduler.state_dict(),
        "progress": {
            "iteration": state.iteration,
            "consumed_samples": state.consumed_samples,
            "consumed_tokens": state.consumed_tokens,
            "skipped_iterations": state.skipped_iterations,
        },
        "generators": ShardedObject(
            "generators",
            _generators(),
            (distributed.get_world_size(),),
            (distributed.get_rank(),),
        ),
    }


def _generators() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state(),
        "numpy": numpy.random.get_state(),
        "python": random.getstate(),
        "tracker": tensor_parallel.get_cuda_rng_tracker().get_states(),
        "cuda": torch.cuda.get_rng_state(),
    }


def _set_generators(states: dict[str, Any]) -> None:
    torch.cuda.set_rng_state(states["cuda"])
    torch.set_rng_state(states["torch"])
    numpy.random.set_state(states["numpy"])
    random.setstate(states["python"])
    tensor_parallel.get_cuda_rng_tracker().set_states(states["tracker"])
