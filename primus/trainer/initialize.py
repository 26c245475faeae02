"""Initial weights that are the same numbers at every parallel layout.

Each matrix of the model is drawn whole, from a generator of its own, and every rank keeps the part
that it holds. What a matrix is called and which part a rank holds is what checkpoints say of it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group
from torch import Tensor

from primus.config.frozen import StageSettings

# Projections back into the residual stream: their spread shrinks with the depth of the model.
_OUTPUTS = ("linear_proj.", "linear_fc2.")
_VOCABULARY = ("embedding.word_embeddings.", "output_layer.")


def leave_weights(config: Any) -> None:
    """Have upstream's layers mark their weights as parallel, but draw nothing.

    Args:
        config: upstream's, not yet used. With `perform_initialization` false the marks, by which
            the gradient norm counts each weight once, would be missing.
    """
    for name in ("init_method", "output_layer_init_method", "embedding_init_method"):
        setattr(config, name, _leave)


def _leave(weight: Tensor) -> Tensor:
    return weight


@torch.no_grad()
def draw_weights(settings: StageSettings, chunk: Any) -> None:
    """Draw every matrix of one unwrapped chunk from N(0, init_method_std²).

    Projections into the residual stream are drawn with init_method_std / sqrt(2 · num_layers), as
    upstream's `scaled_init_method_normal` does. Vectors (norms, biases) stay as they were built;
    rows that pad the vocabulary are zero. Needs memory for one whole matrix in float32 beside the
    chunk.

    Raises:
        RuntimeError: checkpoints do not reach some matrix of the chunk in place.
    """
    left = {
        parameter.untyped_storage().data_ptr(): name
        for name, parameter in chunk.named_parameters()
        if parameter.ndim >= 2
    }
    matrices: dict[tuple[str, tuple[int, ...]], list[ShardedTensor]] = {}
    state = chunk.sharded_state_dict(metadata=ensure_metadata_has_dp_cp_group(None))
    for part in _parts(state):
        if part.data.ndim >= 2 and part.data.is_floating_point():
            prepended = part.global_offset[: part.prepend_axis_num]
            matrices.setdefault((part.key, prepended), []).append(part)
    for (name, prepended), parts in matrices.items():
        whole = _draw(settings, name, prepended, parts[0])
        for part in parts:
            own = part.global_slice()[part.prepend_axis_num :]
            part.data.copy_(whole[own])
            left.pop(part.data.untyped_storage().data_ptr(), None)
    if left:
        raise RuntimeError(f"not initialised: {', '.join(left.values())}")


def _parts(state: dict[str, Any]) -> Iterator[ShardedTensor]:
    for value in state.values():
        if isinstance(value, ShardedTensorFactory):
            built = value.build()
            yield from built.values() if isinstance(built, dict) else built
        elif isinstance(value, ShardedTensor):
            yield value


def _draw(
    settings: StageSettings, name: str, prepended: tuple[int, ...], part: ShardedTensor
) -> Tensor:
    shape = list(part.global_shape[part.prepend_axis_num :])
    rows = settings.vocab_size if name.startswith(_VOCABULARY) else shape[0]
    std = settings.init_method_std
    if any(output in name for output in _OUTPUTS):
        std /= math.sqrt(2.0 * settings.num_layers)
    text = f"{settings.seed} {name} {prepended}"
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    device = part.data.device
    generator = torch.Generator(device=device).manual_seed(seed)
    whole = torch.zeros(shape, dtype=torch.float32, device=device)
    whole[:rows].normal_(0, std, generator=generator)
    return whole
