"""Attention in blocks of queries, against torch's in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from trainer_tiny import tiny

from primus.config.activations import activations
from primus.config.kept_scores import BLOCK, LONGEST, blocks, kept_scores, scores_per_head
from primus.gemm.record import GemmRecorder
from primus.trainer import attention, attention_blocks
from primus.trainer.attention import causal_attention, in_blocks
from primus.trainer.attention_blocks import block_attention
from primus.trainer.model import model_config

SHAPES = [
    # b, heads, groups, s, head, value head
    (1, 4, 4, BLOCK, 16, 16),
    (2, 4, 2, 2 * BLOCK + 17, 16, 16),
    (1, 6, 1, 3 * BLOCK, 8, 8),
    (3, 2, 2, 5, 24, 24),
    (1, 4, 4, BLOCK + 1, 24, 16),
]
SCALE = 0.2
SELECTIVE = {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}


def operands(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    b, heads, groups, s, head, wide = shape
    generator = torch.Generator().manual_seed(3)
    sizes = (b, heads, s, head), (b, groups, s, head), (b, groups, s, wide), (b, heads, s, wide)
    *inputs, grad = (torch.randn(size, generator=generator).to(dtype) for size in sizes)
    return *(x.requires_grad_() for x in inputs), grad


def results(run: Any, inputs: tuple[Tensor, ...], grad: Tensor) -> list[Tensor]:
    out = run(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "again"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_output_and_gradients(
    shape: tuple[int, ...], keep: bool, dtype: torch.dtype, limit: float
) -> None:
    *inputs, grad = operands(shape, dtype)
    found = results(lambda q, k, v: block_attention(q, k, v, SCALE, keep=keep), tuple(inputs), grad)

    def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=SCALE, enable_gqa=True)

    wide = tuple(x.detach().double().requires_grad_() for x in inputs)
    for ours, wanted in zip(found, results(exact, wide, grad.double()), strict=True):
        assert ours.dtype == dtype
        assert ours.shape == wanted.shape
        assert (ours - wanted).norm() < limit * wanted.norm()


def test_scores_that_are_computed_again_are_the_same() -> None:
    *inputs, grad = operands((2, 4, 2, 2 * BLOCK + 17, 16, 16), torch.bfloat16)
    kept, again = (
        results(lambda q, k, v, n=n: block_attention(q, k, v, SCALE, keep=n), tuple(inputs), grad)
        for n in (True, False)
    )
    for one, other in zip(kept, again, strict=True):
        assert torch.equal(one, other)


def test_operands_of_any_layout() -> None:
    """The trainer's gradient is a permuted view, and so may be what it takes."""
    *inputs, grad = operands((2, 4, 2, BLOCK + 3, 8, 8), torch.float32)
    mixed = [x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in (*inputs, grad)]
    run: Any = lambda q, k, v: block_attention(q, k, v, SCALE)  # noqa: E731
    plain = results(run, tuple(inputs), grad)
    strided = results(run, tuple(x.requires_grad_() for x in mixed[:3]), mixed[3])
    for one, other in zip(plain, strided, strict=True):
        assert torch.equal(one, other)


class Allocated(TorchDispatchMode):
    """The largest storage that operators return."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return out


def test_keeps_as_many_scores_as_the_plan_says() -> None:
    *inputs, _ = operands((2, 4, 2, 2 * BLOCK + 17, 16, 16), torch.float32)
    with Allocated() as seen:
        block_attention(*inputs, SCALE)
    assert seen.largest == 4 * 2 * 4 * scores_per_head(2 * BLOCK + 17)
    with Allocated() as seen:
        block_attention(*inputs, SCALE, keep=False)
    assert seen.largest < 4 * 2 * 4 * scores_per_head(2 * BLOCK + 17) / 2
    assert sum(stop - start for start, stop in blocks(2 * BLOCK + 17)) == 2 * BLOCK + 17


@pytest.mark.parametrize(
    "changes",
    [
        {"seq_length": LONGEST + 2, "max_position_embeddings": 2 * LONGEST},
        {"fp16": True},
        {"attention_dropout": 0.1},
        SELECTIVE,
        {"nproc_per_node": 2, "context_parallel_size": 2},
    ],
    ids=str,
)
def test_the_plan_counts_no_scores_where_none_are_kept(changes: dict[str, Any]) -> None:
    assert kept_scores(tiny()) > 0
    assert kept_scores(tiny(**changes)) == 0


def test_selective_recomputation_drops_them_from_the_plan() -> None:
    kept = tiny().micro_batch_size * tiny().num_attention_heads * kept_scores(tiny()) * 4
    (all_kept,), (dropped,) = activations(tiny()), activations(tiny(**SELECTIVE))
    assert all_kept.saved - dropped.saved > tiny().num_layers * kept


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU without AMX, whatever this one has."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


@pytest.mark.filterwarnings("ignore:If you are using transformer_engine:UserWarning")
@pytest.mark.usefixtures("single_rank", "served")
@pytest.mark.parametrize(
    ("changes", "blocks"),
    [
        ({}, "keep"),
        (SELECTIVE, "again"),
        ({"dropout": 0.5}, None),
        ({"dtype": torch.float16}, None),
        ({"positions": LONGEST + 1}, None),
        ({"positions": LONGEST + 1, "dtype": torch.bfloat16}, "again"),
    ],
    ids=str,
)
def test_who_serves(changes: dict[str, Any], blocks: str | None) -> None:
    like = torch.zeros(1, dtype=changes.get("dtype", torch.float32))
    config = model_config(tiny(**{k: v for k, v in changes.items() if k.startswith("recompute")}))
    positions, dropout = changes.get("positions", LONGEST), changes.get("dropout", 0.0)
    assert in_blocks(config, like, positions, dropout) == blocks


@pytest.mark.usefixtures("single_rank")
@pytest.mark.parametrize("blocks", [None, "keep", "again"])
def test_the_model_takes_the_chosen_one(monkeypatch: pytest.MonkeyPatch, blocks: Any) -> None:
    calls = []
    true = attention_blocks.block_attention

    def counted(*operands: Any, keep: bool) -> Tensor:
        calls.append(keep)
        return true(*operands, keep=keep)

    monkeypatch.setattr(attention.attention_blocks, "block_attention", counted)
    q, k, v, _ = operands((1, 2, 2, 40, 4, 4), torch.float32)
    fused = F.scaled_dot_product_attention(q, k, v, is_causal=True).permute(2, 0, 1, 3)
    torch.testing.assert_close(causal_attention(q, k, v, blocks=blocks), fused)
    assert calls == ([] if blocks is None else [blocks == "keep"])


def test_with_amx_torchs_own_kernel_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    like = torch.zeros(1)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert attention_blocks.serves(like, 8)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert not attention_blocks.serves(like, 8)


def test_a_recorder_of_gemms_sees_none_of_its_products() -> None:
    *inputs, grad = operands((1, 2, 2, BLOCK, 8, 8), torch.float32)
    with GemmRecorder() as recorder:
        block_attention(*inputs, SCALE).backward(grad)
        inputs[0].grad @ torch.ones(8, 3)
    assert sum(recorder.counts.values()) == 1
