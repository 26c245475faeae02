"""Training steps on random tokens, to watch what they do: real ones, and ones without memory.

Nothing is logged or saved. The watching is the caller's: each step runs inside the context that
`around()` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from megatron.core import parallel_state
from torch import Tensor, distributed
from torch._subclasses.fake_tensor import FakeTensorMode

from primus.config.frozen import StageSettings
from primus.config.layout import least_ranks_per_stage
from primus.trainer import parallel
from primus.trainer.forward_backward import forward_backward
from primus.trainer.layers import block_spec
from primus.trainer.linear import Gemm, TorchGemm
from primus.trainer.model import ModelConfig, build_model, model_config
from primus.trainer.optimizer import build_optimizer, take_step
from primus.trainer.thin import Thinned, Watcher, count_repeats, fit_recomputation, thin

Around = Callable[[], AbstractContextManager[Watcher | None]]
AroundTrace = Callable[[], AbstractContextManager[Watcher]]


class _Watched:
    """A `Gemm` that tells a watcher which products vary with the tokens of experts."""

    def __init__(self, gemm: Gemm, tokens: Literal["n", "k"] | None = None) -> None:
        self._gemm, self._tokens = gemm, tokens
        self.watcher: Watcher | None = None

    def mm(self, a: Tensor, b: Tensor) -> Tensor:
        with self._telling():
            return self._gemm.mm(a, b)

    def mm_accumulate(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        with self._telling():
            return self._gemm.mm_accumulate(a, b, out)

    def varying(self, dimension: Literal["n", "k"]) -> Gemm:
        inner = _Watched(self._gemm.varying(dimension), dimension)
        inner.watcher = self.watcher
        return inner

    @contextmanager
    def _telling(self) -> Iterator[None]:
        if self.watcher is None:
            yield
            return
        self.watcher.tokens = self._tokens
        try:
            yield
        finally:
            self.watcher.tokens = None


def _dry_config(settings: StageSettings, gemm: Gemm | None = None) -> ModelConfig:
    config = model_config(settings, gemm)
    # How many tokens an expert gets decides its shapes: as many as any other.
    config.balanced_routing = True
    return config


def _tokens(
    settings: StageSettings, device: torch.device, context_parallel_size: int = 1
) -> dict[str, Tensor]:
    shape = (settings.micro_batch_size, settings.seq_length // context_parallel_size)
    positions = torch.arange(shape[1], device=device).expand(shape)
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

    The process group must be initialised. Each forward and backward runs inside `around()`, and
    tells the watcher that it gives, if any, which GEMMs are of experts.
    """
    watched = _Watched(gemm or TorchGemm())
    config = _dry_config(settings, watched)
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
        with around() as watched.watcher:
            forward_backward(settings, chunks, batches(), num_microbatches=1)
        take_step(optimizer, settings.clip_grad)


def trace_micro_batch(
    settings: StageSettings, around: AroundTrace, gemm: Gemm | None = None
) -> None:
    """One forward and backward of one rank of each pipeline stage, without memory or device.

    Parameters and activations are fake tensors, collectives go to a fake process group. No other
    process group may be initialised. Of equal layers and of equal chunks only one runs, inside
    `around()`, and the watcher's `times` says for how many it stands.
    """
    waiting: list[tuple[_Chunk, int]] = []
    for stage in range(settings.pipeline_model_parallel_size):
        with _fake_stage(settings, stage):
            waiting += [(chunk, stage) for chunk in _chunks(settings)]
    while waiting:
        (chunk, stage), *others = waiting
        waiting = [other for other in others if not chunk.like(other[0])]
        times = 1 + len(others) - len(waiting)
        with _fake_stage(settings, stage), FakeTensorMode(allow_non_fake_inputs=True):
            _trace_chunk(settings, chunk, times, around, gemm or TorchGemm())


@dataclass(frozen=True)
class _Chunk:
    """One rank's chunk of the model, thinned."""

    vp_stage: int | None
    pre_process: bool
    post_process: bool
    layers: Thinned

    def like(self, other: _Chunk) -> bool:
        """Whether both call the same, but for how often."""
        return replace(self, vp_stage=None) == replace(other, vp_stage=None)


def _chunks(settings: StageSettings) -> Iterator[_Chunk]:
    virtual = settings.virtual_pipeline_model_parallel_size
    for number in range(virtual or 1):
        vp_stage = number if virtual else None
        config = _dry_config(settings)
        yield _Chunk(
            vp_stage,
            parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
            parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
            thin(block_spec(config, vp_stage), config),
        )


def _trace_chunk(
    settings: StageSettings, chunk: _Chunk, times: int, around: AroundTrace, gemm: Gemm
) -> None:
    watched = _Watched(gemm)
    config = _dry_config(settings, watched)
    config.perform_initialization = False
    fit_recomputation(config, chunk.layers)
    model: Any = build_model(
        settings,
        config,
        pre_process=chunk.pre_process,
        post_process=chunk.post_process,
        vp_stage=chunk.vp_stage,
        layers=chunk.layers.spec,
    )
    # Fully sharded weights have no such gradient: autograd adds theirs up.
    for parameter in () if settings.use_torch_fsdp2 else model.parameters():
        parameter.main_grad = torch.empty_like(parameter, dtype=torch.float32)
    batch = _tokens(settings, torch.device("cpu"), settings.context_parallel_size)
    if not chunk.pre_process:
        rows = batch["tokens"].shape[1]
        if settings.sequence_parallel:
            rows //= settings.tensor_model_parallel_size
        shape = (rows, settings.micro_batch_size, settings.hidden_size)
        model.set_input_tensor(torch.empty(shape, dtype=config.params_dtype, requires_grad=True))
    labels = batch["labels"] if chunk.post_process else None
    with around() as watcher:
        watcher.times, watched.watcher = times, watcher
        repeats = [times * number for number in chunk.layers.repeats]
        count_repeats(model.decoder.layers, repeats, watcher)
        out = model(batch["tokens"], batch["position_ids"], None, labels=labels)
        # A dense gradient, as the next stage sends it; that of a sum would have no strides.
        torch.autograd.backward(out, torch.empty_like(out))


@contextmanager
def _fake_stage(settings: StageSettings, stage: int) -> Iterator[None]:
    """Megatron's groups on the first rank of a pipeline stage of a fake job."""
    per_stage = least_ranks_per_stage(settings)
    world_size = settings.pipeline_model_parallel_size * per_stage
    with _fake_process_group(rank=stage * per_stage, world_size=world_size):
        parallel.initialize_groups(settings)
        try:
            yield
        finally:
            parallel_state.destroy_model_parallel()


@contextmanager
def _fake_process_group(*, rank: int, world_size: int) -> Iterator[None]:
    """A process group of `world_size` ranks in this process, whose collectives do nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        distributed.destroy_process_group()
