"""The GEMM problem: torch layouts in BLAS terms, plain values and text."""

from __future__ import annotations

import json

import pytest
import torch
from gemm_strategies import PROBLEM
from hypothesis import given
from hypothesis import strategies as st

from primus.errors import ArtifactError
from primus.gemm.operands import make_operands
from primus.gemm.problem import Problem


@given(PROBLEM)
def test_plain_values_hold_the_whole_problem(problem: Problem) -> None:
    again = Problem.from_json(json.loads(json.dumps(problem.to_json())))
    assert again == problem
    assert hash(again) == hash(problem)
    assert again.key == problem.key


@given(PROBLEM, PROBLEM)
def test_text_key_and_order_tell_problems_apart(one: Problem, other: Problem) -> None:
    same = one == other
    assert (str(one) == str(other)) is same
    assert (one.key == other.key) is same
    assert (one.sort_key() == other.sort_key()) is same
    assert "\n" not in str(one)


LINEAR = [  # facts: fprop TN (out, T, in), dgrad NN (in, T, out), wgrad NT (in, out, T)
    ("fprop", lambda x, w, g: (x, w.t()), "TN", (24, 40, 16)),
    ("dgrad", lambda x, w, g: (g, w), "NN", (16, 40, 24)),
    ("wgrad", lambda x, w, g: (g.t(), x), "NT", (16, 24, 40)),
]


@pytest.mark.parametrize(("phase", "pick", "layout", "sizes"), LINEAR)
def test_the_three_products_of_a_linear_layer(phase, pick, layout, sizes) -> None:
    x, w, g = torch.ones(40, 16), torch.ones(24, 16), torch.ones(40, 24)
    problem = Problem.from_mm(*pick(x, w, g))
    assert problem.transA + problem.transB == layout
    assert (problem.m, problem.n, problem.k) == sizes
    assert problem == Problem(
        transA=layout[0],
        transB=layout[1],
        m=sizes[0],
        n=sizes[1],
        k=sizes[2],
    )


def test_leading_dimensions_of_slices_and_the_copy_of_what_blas_cannot_read() -> None:
    wide = torch.ones(8, 64)
    problem = Problem.from_mm(wide[:, :16], torch.ones(16, 4))
    assert (problem.ldb, problem.lda, problem.ldd) == (64, 4, 4)
    strided = Problem.from_mm(wide[:, ::4], torch.ones(16, 4))
    assert (strided.transB, strided.ldb) == ("N", 16)


def test_a_transposed_result_is_the_product_of_the_transposes() -> None:
    a, b = torch.ones(8, 16), torch.ones(16, 4)
    out = torch.ones(4, 8).t()
    assert Problem.from_mm(a, b, out) == Problem.from_mm(b.t(), a.t())
    into = Problem.from_addmm(out, a, b, out=out)
    assert into == Problem.from_addmm(out.t(), b.t(), a.t(), out=out.t())
    assert into.beta == 1


def test_bias_and_added_matrix() -> None:
    a, b = torch.ones(8, 16), torch.ones(16, 4)
    bias = Problem.from_addmm(torch.ones(4), a, b)
    assert (bias.bias_vector, bias.bias_type, bias.beta) == (True, "f32_r", 0)
    added = Problem.from_addmm(torch.ones(8, 12)[:, :4], a, b, beta=0.5, alpha=2.0)
    assert (added.ldc, added.ldd, added.beta, added.alpha) == (12, 4, 0.5, 2.0)


def test_batches_have_strides() -> None:
    a, b = torch.ones(3, 8, 16), torch.ones(1, 16, 4).expand(3, 16, 4)
    problem = Problem.from_mm(a, b)
    assert (problem.batch_count, problem.stride_a, problem.stride_b) == (3, 0, 128)
    assert problem.flops == 3 * 2 * 8 * 4 * 16
    assert problem.bytes == 3 * 4 * (8 * 16 + 16 * 4 + 8 * 4)


@given(
    m=st.integers(2, 9),
    n=st.integers(2, 9),
    k=st.integers(2, 9),
    trans=st.sampled_from(["NN", "NT", "TN", "TT"]),
    pad=st.tuples(*[st.integers(0, 3)] * 2),
    batch_count=st.integers(1, 3),
    type_name=st.sampled_from(["f32_r", "bf16_r", "f64_r"]),
    beta=st.sampled_from([0.0, 1.0]),
)
def test_operands_have_the_layout_of_their_problem(
    m, n, k, trans, pad, batch_count, type_name, beta
) -> None:
    lda = (m if trans[0] == "N" else k) + pad[0]
    ldb = (k if trans[1] == "N" else n) + pad[1]
    batched = batch_count > 1
    wide = "f64_r" if type_name == "f64_r" else "f32_r"
    problem = Problem(
        m=m,
        n=n,
        k=k,
        transA=trans[0],
        transB=trans[1],
        lda=lda,
        ldb=ldb,
        batch_count=batch_count,
        stride_a=lda * (k if trans[0] == "N" else m) if batched else 0,
        stride_b=ldb * (n if trans[1] == "N" else k) if batched else 0,
        stride_c=m * n if batched else 0,
        stride_d=m * n if batched else 0,
        a_type=type_name,
        beta=beta,
        compute_type=wide,
        scale_type=wide,
    )
    operands = make_operands(problem, 0)
    if operands.c is None:
        assert Problem.from_mm(operands.a, operands.b) == problem
    else:
        c = operands.c
        assert Problem.from_addmm(c, operands.a, operands.b, out=c) == problem


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"m": 1, "n": 1}, "missing fields ['k']"),
        ({"m": 1, "n": 1, "k": 1, "z": 1}, "unknown fields ['z']"),
        ({"m": "1", "n": 1, "k": 1}, "m = '1': wanted a value of type int"),
        ({"m": 0, "n": 1, "k": 1}, "sizes of at least 1"),
        ({"m": 1, "n": 1, "k": 1, "groups": [{"m": 1}]}, "missing 6 required"),
    ],
)
def test_damaged_values_are_named(content, message) -> None:
    with pytest.raises(ArtifactError) as caught:
        Problem.from_json(content)
    assert message in str(caught.value)
