"""The GEMMs of experts: several numbers of tokens for one recorded problem."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gemm_replay import recording

from primus.artifacts.gemm import load_shapes
from primus.gemm.problem import Group, Problem
from primus.gemm.search import SearchSettings, tune
from primus.gemm.shapes import Shape, read_shapes, write_shapes
from primus.gemm.tokens import expand, scale_tokens
from primus.gemm.tuned import TunedResult, write_tuned

FACTORS = (0.5, 1.0, 2.0)
# A linear layer {out 64, in 32} of an expert with T = 40 tokens, in its three products.
FPROP = Problem(m=64, n=40, k=32, transA="T")
DGRAD = Problem(m=32, n=40, k=64)
WGRAD = Problem(m=32, n=64, k=40, transB="T")


def test_each_product_is_what_it_would_be_with_other_tokens() -> None:
    assert scale_tokens(FPROP, "n", 2.0) == Problem(m=64, n=80, k=32, transA="T")
    assert scale_tokens(DGRAD, "n", 0.5) == Problem(m=32, n=24, k=64)
    assert scale_tokens(WGRAD, "k", 0.5) == Problem(m=32, n=64, k=24, transB="T")
    transposed = Problem(m=32, n=40, k=64, transB="T")
    assert scale_tokens(transposed, "n", 2.0) == Problem(m=32, n=80, k=64, transB="T")


@pytest.mark.parametrize(
    ("tokens", "factor", "result"),
    [
        (40, 1.0, 40),
        (41, 1.0, 40),
        (1000, 0.5, 504),
        (3, 1.0, 8),
        (10, 0.01, 8),
        (12, 2.0, 24),
        (40, 0.5, 24),
    ],
)
def test_tokens_are_multiples_of_eight(tokens: int, factor: float, result: int) -> None:
    assert scale_tokens(replace(FPROP, n=tokens), "n", factor).n == result


def test_views_into_larger_buffers_keep_their_distances() -> None:
    """B is [n, k] in memory in a buffer 100 wide; D lies in one of 70."""
    view = Problem(m=64, n=40, k=32, transB="T", ldb=100, ldd=70, ldc=70)
    small = scale_tokens(view, "n", 0.5)
    assert (small.n, small.ldb, small.ldd) == (24, 100, 70)
    assert scale_tokens(view, "n", 4.0).ldb == 160


def test_batches_and_groups_scale_in_every_member() -> None:
    batched = Problem(
        m=64,
        n=40,
        k=32,
        batch_count=4,
        stride_a=64 * 32,
        stride_b=32 * 40,
        stride_d=64 * 40,
        stride_c=0,
    )
    double = scale_tokens(batched, "n", 2.0)
    assert (double.stride_a, double.stride_b, double.stride_d) == (64 * 32, 32 * 80, 64 * 80)
    assert double.stride_c == 0
    member = Group(m=64, n=16, k=32, lda=32, ldb=32, ldc=64, ldd=64)
    grouped = replace(FPROP, grouped_gemm=True, groups=(member,))
    scaled = scale_tokens(grouped, "n", 2.0)
    assert (scaled.n, scaled.groups[0]) == (80, replace(member, n=32))


def test_calls_are_shared_out_and_none_is_lost() -> None:
    shapes = [Shape(FPROP, 8, {"forward": 8}, "n"), Shape(DGRAD, 2, {"backward": 2})]
    found = expand(shapes, FACTORS)
    assert [(w.shape.problem.n, w.shape.calls, w.shape.tokens) for w in found] == [
        (24, 3, "n"),
        (40, 3, "n"),
        (80, 2, "n"),
        (40, 2, None),
    ]
    assert [w.weight for w in found] == [8 / 3, 8 / 3, 8 / 3, 2]
    assert sum(w.shape.calls for w in found) == 10
    # The mean comes first where there are fewer calls than sizes; all sizes are still tuned.
    one = expand([Shape(FPROP, 1, {"forward": 1}, "n")], FACTORS)
    assert [w.shape.calls for w in one] == [0, 1, 0]
    assert all(w.weight > 0 for w in one)


def test_equal_problems_become_one() -> None:
    other = Shape(replace(FPROP, n=80), 5, {"forward": 4, "backward": 1})
    found = expand([Shape(FPROP, 3, {"forward": 3}, "n"), other], (1.0, 2.0, 2.01))
    assert [(w.shape.problem.n, w.shape.calls, w.shape.tokens) for w in found] == [
        (40, 2, "n"),
        (80, 6, "n"),
    ]
    assert found[1].shape.phases == {"backward": 1, "forward": 5}


def test_each_size_gets_a_row_of_its_own(tmp_path) -> None:
    calls = {(FPROP, "forward"): 6, (DGRAD, "backward"): 6}
    path = tmp_path / "shapes.jsonl"
    write_shapes(path, calls, source="record", model={}, varying={FPROP: "n"})
    assert {row.tokens for row in load_shapes(path)[1]} == {"n", None}
    spec = recording(tmp_path / "r.json", [])
    settings = SearchSettings(coverage=1.0, expert_token_factors=(0.2, 1.0))
    result = tune(read_shapes(path)[1], spec, settings, str(tmp_path / "store"))
    write_tuned(tmp_path / "tuned.jsonl", result, settings, "0")
    rows = TunedResult.load(tmp_path / "tuned.jsonl").rows
    found = sorted((row.tokens or "-", row.problem["n"], row.calls) for row in rows)
    assert found == [("-", 40, 6), ("n", 8, 3), ("n", 40, 3)]
