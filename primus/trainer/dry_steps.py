"""Training steps on random tokens, to watch what they do: real ones, and ones without memory.

Nothing is logged or saved. The watching is the caller's: each step runs inside the context that
`around()` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor, distributed
from torch._subclasses.fake_tensor import FakeTensorMode

from primus.config.frozen import StageSettings
from primus.trainer import parallel
from primus.trainer.linear import Gemm
from primus.trainer.loop import forward_backward
from primus.trainer.model import model_config
from primus.trainer.optimizer import build_optimizer, take_step

Around = Callable[[], AbstractContextManager[Any]]


def _tokens(settings: StageSettings, device: torch.device) -> dict[str, Tensor]:
    shape = (settings.micro_batch_size, settings.seq_length)
    positions = torch.arange(settings.seq_length, device=device).expand(shape)
    return {
        "tokens": torch.randint(0, settings.vocab_size, shape, device=device),
        "labels": torch.randint(0, settings.vocab_size, shape, device=device),
        "position_ids": positions,
        "loss_mask": torch.ones(shape, device=device),
    }


def train_steps(
    settings: StageSettings,
    device: torch.device,
    iterations: int,
    around: Around,
    gemm: Gemm | None = None,
) -> None:
    """Train one micro-batch per iteration: forward, backward, optimizer step.

    The process group must be initialised. Each forward and backward runs inside `around()`.
    """
    config = model_config(settings, gemm)
    chunks = parallel.wrap(settings, config, parallel.build_chunks(settings, config))
    optimizer = build_optimizer(settings, chunks)
    config.grad_scale_func = optimizer.scale_loss

    def batches() -> Iterator[dict[str, Tensor]]:
        while True:
            yield _tokens(settings, device)

    for _ in range(iterations):
        for chunk in chunks:
            chunk.zero_grad_buffer()  # type: ignore[operator]
        optimizer.zero_grad()
        with around():
            forward_backward(settings, chunks, batches(), num_microbatches=1)
        take_step(optimizer, settings.clip_grad)


def trace_micro_batch(settings: StageSettings, around: Around) -> None:
    """One forward and backward of one rank of each pipeline stage, without memory or device.

    Parameters and activations are fake tensors, collectives go to a fake process group. No other
    process group may be initialised. Each chunk's forward and backward runs inside `around()`.
    """
    ranks = (
        settings.tensor_model_parallel_size
        * settings.pipeline_model_parallel_size
        * settings.context_parallel_size
    )
    per_stage = ranks // settings.pipeline_model_parallel_size
    for stage in range(settings.pipeline_model_parallel_size):
        with _fake_process_group(rank=stage * per_stage, world_size=ranks):
            parallel.initialize_groups(settings)
            with FakeTensorMode(allow_non_fake_inputs=True):
                config = model_config(settings)
                config.perform_initialization = False
                for chunk in parallel.build_chunks(settings, config, float16_module=False):
                    for parameter in chunk.parameters():
                        grad = torch.empty_like(parameter, dtype=torch.float32)
                        parameter.main_grad = grad  # type: ignore[attr-defined]
                    with around():
                        _trace_chunk(settings, chunk)
            parallel_state.destroy_model_parallel()


def _trace_chunk(settings: StageSettings, chunk: Any) -> None:
    batch = _tokens(settings, torch.device("cpu"))
    if not chunk.pre_process:
        rows = settings.seq_length // settings.context_parallel_size
        if settings.sequence_parallel:
            rows //= settings.tensor_model_parallel_size
        shape = (rows, settings.micro_batch_size, settings.hidden_size)
        hidden = torch.empty(shape, dtype=chunk.config.params_dtype, requires_grad=True)
        chunk.set_input_tensor(hidden)
    labels = batch["labels"] if chunk.post_process else None
    out = chunk(batch["tokens"], batch["position_ids"], None, labels=labels)
    # A dense gradient, as the next stage sends it; that of a sum would have no strides.
    torch.autograd.backward(out, torch.empty_like(out))


@contextmanager
def _fake_process_group(*, rank: int, world_size: int) -> Iterator[None]:
    """A process group of `world_size` ranks in this process, whose collectives do nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        distributed.destroy_process_group()
