"""The recorder against torch's own FLOP counter, with and without memory."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from primus.errors import TrainingError
from primus.gemm.dispatch import GemmDispatcher
from primus.gemm.problem import Problem
from primus.gemm.record import GemmRecorder
from primus.gemm.shapes import read_shapes, write_shapes


def mlp_and_attention(dtype: torch.dtype = torch.float32) -> None:
    """Forward and backward; the attention is spelled out, so that its GEMMs are visible."""
    x = torch.randn(2, 16, 32, dtype=dtype, requires_grad=True)
    qkv = torch.nn.Linear(32, 96, bias=False, dtype=dtype)
    up = torch.nn.Linear(32, 48, dtype=dtype)
    down = torch.nn.Linear(48, 32, bias=False, dtype=dtype)
    q, k, v = (part.view(2, 16, 4, 8).transpose(1, 2) for part in qkv(x).split(32, dim=-1))
    scores = torch.softmax(q @ k.transpose(2, 3), dim=-1)
    mixed = (scores @ v).transpose(1, 2).reshape(2, 16, 32)
    bias = torch.zeros(2, 16, 16, dtype=dtype)
    extra = torch.baddbmm(bias, mixed, mixed.transpose(1, 2), alpha=0.5)
    (down(F.silu(up(mixed))).sum() + extra.sum()).backward()


def test_flops_equal_those_of_the_flop_counter() -> None:
    with FlopCounterMode(display=False) as counter:
        mlp_and_attention()
    with GemmRecorder() as recorder:
        mlp_and_attention()
    assert recorder.flops == counter.get_total_flops()
    assert {phase for _, phase in recorder.calls} == {"forward", "backward"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trace_equals_record(dtype: torch.dtype) -> None:
    with GemmRecorder() as recorded:
        mlp_and_attention(dtype)
    with FakeTensorMode(), GemmRecorder() as traced:
        mlp_and_attention(dtype)
    assert traced.calls == recorded.calls


def test_a_linear_layer_counts_once_forward_and_twice_backward() -> None:
    layer = torch.nn.Linear(16, 24, bias=False)
    x = torch.randn(40, 16, requires_grad=True)
    with GemmRecorder() as recorder:
        for _ in range(3):
            layer(x).sum().backward()
    fprop = Problem(m=24, n=40, k=16, transA="T")
    assert recorder.calls[fprop, "forward"] == 3
    assert sum(recorder.calls.values()) == 9
    assert sum(n for (_, phase), n in recorder.calls.items() if phase == "backward") == 6


def test_composites_are_seen_under_inference_mode() -> None:
    layer, x = torch.nn.Linear(16, 24), torch.randn(40, 16)
    with torch.inference_mode(), GemmRecorder() as recorder:
        layer(x)
    assert list(recorder.counts) == [
        Problem(m=24, n=40, k=16, transA="T", bias_vector=True, bias_type="f32_r")
    ]


def test_in_place_and_out_variants() -> None:
    a, b, out = torch.randn(8, 16), torch.randn(16, 4), torch.zeros(8, 4)
    with GemmRecorder() as recorder:
        out.addmm_(a, b)
        torch.mm(a, b, out=out)
    plain = Problem(m=4, n=8, k=16)
    added = Problem(m=4, n=8, k=16, beta=1.0)
    assert recorder.counts == {plain: 1, added: 1}


def test_empty_products_and_vectors_are_no_gemms() -> None:
    with GemmRecorder() as recorder:
        torch.mm(torch.ones(0, 4), torch.ones(4, 4))
        torch.mv(torch.ones(4, 4), torch.ones(4))
    assert not recorder.calls


def test_what_is_recorded_is_what_the_dispatcher_looks_up() -> None:
    dispatcher = GemmDispatcher()
    x, w, g = torch.randn(40, 16), torch.randn(24, 16), torch.randn(40, 24)
    main_grad = torch.zeros(24, 16)
    with GemmRecorder() as recorder:
        dispatcher.mm(x, w.t())
        dispatcher.mm(g, w)
        dispatcher.mm_accumulate(g.t(), x, main_grad)
        dispatcher.mm_accumulate(g.t().bfloat16(), x.bfloat16(), main_grad)
    use = dispatcher.use()
    assert {row["problem"] for row in use.problems} == {str(p) for p in recorder.counts}
    assert use.misses == sum(recorder.calls.values()) == 4


def test_shapes_file(tmp_path) -> None:
    with GemmRecorder() as recorder:
        for _ in range(4):
            mlp_and_attention()
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    wrote = write_shapes(first, recorder.calls, source="record", model={"x": 1}, microbatches=4)
    reversed_calls = dict(reversed(recorder.calls.items()))
    write_shapes(second, reversed_calls, source="record", model={"x": 1}, microbatches=4)
    assert first.read_bytes() == second.read_bytes()
    header, shapes = read_shapes(first)
    assert shapes == wrote
    assert (header.source, header.per, header.problems) == ("record", "microbatch", len(shapes))
    assert header.flops * 4 == recorder.flops
    assert header.calls * 4 == sum(recorder.calls.values())
    weights = [shape.calls * shape.problem.flops for shape in shapes]
    assert weights == sorted(weights, reverse=True)
    assert all(sum(shape.phases.values()) == shape.calls for shape in shapes)


def test_calls_that_differ_between_microbatches_are_refused(tmp_path) -> None:
    calls = {(Problem(m=1, n=2, k=3), "forward"): 3}
    with pytest.raises(TrainingError, match="3 forward calls in 2 microbatches"):
        write_shapes(tmp_path / "s", calls, source="record", model={}, microbatches=2)
    with pytest.raises(TrainingError, match="no GEMM"):
        write_shapes(tmp_path / "s", {}, source="trace", model={})
