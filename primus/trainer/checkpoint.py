"""Saving and loading the whole training state, together on all ranks."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from megatron.core import dist_checkpointing, tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group
from megatron.core.utils import get_model_config
from torch import distributed
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata

from primus import pickles
from primus.artifacts.run import CheckpointManifest
from primus.errors import ArtifactError, CheckpointError, UserError
from primus.trainer import checkpoint_directory as directory
from primus.trainer import checkpoint_read, optimizer_pieces
from primus.trainer.checkpoint_read import Damaged, together
from primus.trainer.checkpoint_write import Snapshot, Staging, first_cause, take, write
from primus.trainer.files_seen import is_there, wait_for_files
from primus.trainer.fully_sharded import holder
from primus.trainer.optimizer_state import adapt, ask_for_saved_names

logger = logging.getLogger(__name__)


def _metadata() -> dict[str, Any]:
    # Optimizer state in the shape of the parameters, so that it loads at other layouts too.
    # Upstream writes process groups into this dictionary: a new one for every call.
    return ensure_metadata_has_dp_cp_group({"distrib_optim_sharding_type": "fully_reshardable"})  # type: ignore[no-any-return]


@dataclass(kw_only=True)
class TrainingState:
    """Everything that a checkpoint holds; the objects are changed in place by a load.

    Attributes:
        skipped_iterations: steps without an update. skipped_batches: those of a bad batch.
        sample_checksum: of all consumed samples; None after a load from a checkpoint without.
    """

    chunks: list[Any]
    optimizer: Any
    scheduler: Any
    iteration: int = 0
    consumed_samples: int = 0
    consumed_tokens: int = 0
    skipped_iterations: int = 0
    skipped_batches: int = 0
    sample_checksum: int | None = 0


def save(
    state: TrainingState,
    root: Path,
    about: dict[str, Any],
    may_write: Callable[[], None] = lambda: None,
) -> Path:
    """Save the state at once; collective over all ranks. Arguments and errors: as of `write`."""
    return write(snapshot(state), root, about, may_write)


def snapshot(state: TrainingState, staging: Staging | None = None) -> Snapshot:
    """What a checkpoint will hold of this rank; collective, as a sharded optimizer exchanges parts.

    Args:
        staging: where to copy it, so that training may go on; None: it refers to the state itself.
    """
    progress = {
        "iteration": state.iteration,
        "consumed_samples": state.consumed_samples,
        "consumed_tokens": state.consumed_tokens,
    }
    return take(_sharded_state(state, is_loading=False), progress, staging)


def load_newest(state: TrainingState, root: Path, key: str) -> str | None:
    """Load the newest checkpoint that verifies; collective over all ranks.

    Damaged checkpoints are skipped with a warning that names them.

    Returns:
        the name of the loaded checkpoint; None where there is no checkpoint at all.

    Raises:
        CheckpointError: checkpoints exist, but none is good. Tensors of the state then hold parts
            of those that are not: nothing may go on with it.
    """
    candidates = seen_by_first(lambda: directory.newest_first(root))
    for candidate in candidates:
        try:
            _load(state, candidate, key)
        except Damaged as error:
            # The next one overwrites what has been read of this one.
            if distributed.get_rank() == 0:
                logger.warning("skipping a damaged checkpoint: %s", error)
        else:
            return candidate.name
    if candidates:
        raise CheckpointError(
            f"{root}: none of {len(candidates)} checkpoints is good, and training does not start "
            "again silently at iteration 0. Fix: restore a checkpoint, or move the directory away"
        )
    return None


def seen_by_first(choose: Callable[[], list[Path]]) -> list[Path]:
    """The checkpoints that the first rank chooses; ranks on other nodes may see one late.

    Raises:
        UserError: the choice is one, on all ranks alike.
        UnavailableError: this rank does not see one that the first rank does.
    """
    box: list[Any] = [None, None]
    if distributed.get_rank() == 0:
        try:
            # An empty manifest is damage, which nobody waits out.
            box[0] = [(path, is_there(path / directory.MANIFEST)) for path in choose()]
        except (UserError, ArtifactError) as error:
            box[1] = str(error)
    distributed.broadcast_object_list(box, src=0)
    found, problem = box
    if problem is not None:
        raise UserError(problem)
    wait_for_files(path / directory.MANIFEST for path, whole in found if whole)
    return [path for path, _ in found]


def load_other(state: TrainingState, chosen: Path, layout: dict[str, int]) -> CheckpointManifest:
    """Load a checkpoint of another run, saved at any layout; collective over all ranks.

    The states of the random generators belong to ranks: they are loaded where the layout is the
    same, and are left as they are where it is not.

    Args:
        chosen: the checkpoint, the same on all ranks.
        layout: of this run, as `parallel.layout` gives it.

    Returns:
        the manifest of the loaded checkpoint.

    Raises:
        UserError: it is damaged, or does not fit the model. Tensors of the state may then hold
            parts of it: nothing may go on with it.
    """
    in_fp8 = getattr(get_model_config(state.chunks[0]), "fp8", None) is not None
    try:
        return _load(state, chosen, layout=layout, engine_state=in_fp8)
    except Damaged as error:
        raise UserError(
            f"load_checkpoint = {chosen}: {error}. Fix: name an earlier checkpoint"
        ) from error
    except (CheckpointException, KeyError, RuntimeError, ValueError) as error:
        raise UserError(
            f"load_checkpoint = {chosen}: does not fit this model: {first_cause(error)[:200]}. "
            "Fix: the keys of the model and of its precision must be those of the checkpoint"
        ) from error


def _load(
    state: TrainingState,
    source: Path,
    key: str | None = None,
    *,
    layout: dict[str, int] | None = None,
    engine_state: bool = True,
) -> CheckpointManifest:
    """Load a checkpoint; collective. Each file is read once, and hashed on the way.

    Args:
        layout: of this run, where it may differ from the checkpoint's: random generators are then
            left as they are.

    Returns:
        its manifest.

    Raises:
        Damaged: it is, on all ranks alike; some tensors may have been overwritten, nothing else.
    """
    manifest, index, tensors = _examine(source, key, engine_state=engine_state)
    generators = layout is None or manifest.layout == layout
    wanted = _sharded_state(state, is_loading=True)
    if not generators:
        del wanted["generators"]
    ask_for_saved_names(state.optimizer, wanted["optimizer"], pickles.tensors(index))
    checkpoint_read.merge_in_place(wanted)
    strategy = checkpoint_read.Strategy(index, tensors)
    # Every rank would send all others the shapes of its tensors. That the parts of ranks make up
    # whole tensors is checked by torch at each save.
    loaded = dist_checkpointing.load(wanted, str(source), strategy, validate_access_integrity=False)
    for number, chunk in enumerate(state.chunks):
        holder(chunk).load_state_dict(loaded[f"model{number}"], strict=True)
    adapt(state.optimizer, loaded["optimizer"])
    state.optimizer.load_state_dict(loaded["optimizer"])
    state.scheduler.load_state_dict(loaded["scheduler"])
    # Checkpoints of older versions say nothing of these.
    state.skipped_batches, state.sample_checksum = 0, None
    for name, value in loaded["progress"].items():
        setattr(state, name, value)
    if generators:
        _set_generators(loaded["generators"])
    return manifest


def _examine(
    source: Path, key: str | None, *, engine_state: bool
) -> tuple[CheckpointManifest, Metadata, directory.Files]:
    """All that can be verified before tensors are read; collective.

    Returns:
        the manifest, the index, and the files of tensors that this rank has to verify.

    Raises:
        Damaged: what is wrong: first files, then what would run code.
    """
    rank, world = distributed.get_rank(), distributed.get_world_size()

    def files() -> tuple[CheckpointManifest, directory.Files]:
        manifest = directory.load_manifest(source, key)
        tensors, others = directory.share(manifest, rank, world)
        for name, record in tensors.items():
            record.verify_size(source / name)
        directory.verify_files(source, others.items())
        return manifest, tensors

    manifest, tensors = together(files)

    def objects() -> Metadata:
        return pickles.check(source, rank, world, engine_state=engine_state)

    try:
        return manifest, together(objects), tensors
    except Damaged:
        # Of what is torn its hash tells more.
        together(lambda: directory.verify_files(source, tensors.items()))
        raise


def _sharded_state(state: TrainingState, *, is_loading: bool) -> dict[str, Any]:
    models = {
        f"model{number}": holder(chunk).sharded_state_dict(metadata=_metadata())
        for number, chunk in enumerate(state.chunks)
    }
    return {
        **models,
        "optimizer": optimizer_pieces.sharded_state(
            state.optimizer, models, _metadata(), is_loading=is_loading
        ),
        "scheduler": state.scheduler.state_dict(),
        "progress": {
            "iteration": state.iteration,
            "consumed_samples": state.consumed_samples,
            "consumed_tokens": state.consumed_tokens,
            "skipped_iterations": state.skipped_iterations,
            "skipped_batches": state.skipped_batches,
            "sample_checksum": state.sample_checksum,
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
