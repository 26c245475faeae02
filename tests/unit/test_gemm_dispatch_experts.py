"""Experts: every number of tokens is served by the nearest tuned one, in bounded memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_gemm_dispatch import tuned
from torch import Tensor

from primus.artifacts.gemm import load_tuned, save_lines
from primus.gemm import dispatch_experts
from primus.gemm.dispatch import GemmDispatcher
from primus.gemm.kernels import KERNELS
from primus.gemm.problem import Problem
from primus.gemm.tuned import TunedResult

OUT, IN = 96, 80
WEIGHT = torch.randn(OUT, IN)


def forward(tokens: int) -> tuple[Tensor, Tensor]:
    return torch.randn(tokens, IN), WEIGHT.t()


def summed(tokens: int) -> tuple[Tensor, Tensor]:
    return torch.randn(tokens, OUT).t(), torch.randn(tokens, IN)


def result(path: Path, choices: dict[Problem, str], dimension: str) -> TunedResult:
    """A tuned result whose problems all vary in `dimension`."""
    tuned(path, choices)
    header, rows = load_tuned(path)
    save_lines(path, header, [row.model_copy(update={"tokens": dimension}) for row in rows])
    return TunedResult.load(path)


def rows_of(dispatcher: GemmDispatcher) -> dict[str, dict[str, Any]]:
    return {row["problem"]: row for row in dispatcher.use().problems}


def test_the_nearest_number_of_tokens_serves(tmp_path: Path) -> None:
    small, large = Problem.from_mm(*forward(64)), Problem.from_mm(*forward(256))
    found = result(tmp_path / "t", {small: "swap", large: "relayout_a"}, "n")
    dispatcher = GemmDispatcher(found)
    for tokens in (64, 32, 100, 127, 129, 256, 512, 31, 513):
        a, b = forward(tokens)
        torch.testing.assert_close(dispatcher.varying("n").mm(a, b), a @ b)
    rows = rows_of(dispatcher)
    # 128 is as far from 64 as from 256, in the ratio.
    assert (rows[str(small)]["calls"], rows[str(small)]["nearest"]) == (4, 3)
    assert (rows[str(large)]["calls"], rows[str(large)]["nearest"]) == (3, 2)
    assert {rows[str(p)]["use"] for p in (small, large)} == {"hit"}
    missed = rows[str(small).replace(f"{OUT}x64x{IN}", f"{OUT}x*x{IN}")]
    assert (missed["use"], missed["calls"]) == ("miss", 2)
    assert missed["why"] == "tuned for 32 to 512 tokens"
    use = dispatcher.use()
    assert (use.hits, use.misses, use.defaults, use.rejections) == (7, 2, 0, 0)


def test_weight_gradients_vary_in_the_sum(tmp_path: Path) -> None:
    a, b = summed(64)
    main_grad = torch.zeros(OUT, IN)
    problem = Problem.from_addmm(main_grad, a, b, out=main_grad)
    dispatcher = GemmDispatcher(result(tmp_path / "t", {problem: "relayout_b"}, "k"))
    a, b = summed(96)
    assert dispatcher.varying("k").mm_accumulate(a, b, main_grad) is main_grad
    torch.testing.assert_close(main_grad, a @ b)
    assert rows_of(dispatcher)[str(problem)]["nearest"] == 1
    assert dispatcher.use().hits == 1


def test_only_products_of_experts_are_served_by_another_size(tmp_path: Path) -> None:
    problem = Problem.from_mm(*forward(64))
    dispatcher = GemmDispatcher(result(tmp_path / "t", {problem: "swap"}, "n"))
    dispatcher.mm(*forward(65))
    dispatcher.varying("n").mm(torch.randn(65, IN), torch.randn(OUT + 1, IN).t())
    dispatcher.varying("n").mm(torch.randn(65, IN).bfloat16(), WEIGHT.t().bfloat16())
    dispatcher.varying("k").mm(*summed(64))
    assert (dispatcher.use().hits, dispatcher.use().misses) == (0, 4)
    assert rows_of(dispatcher)[str(problem)]["use"] == "unused"


def test_a_kernel_that_cannot_serve_the_number_is_passed_over(tmp_path: Path) -> None:
    small, large = Problem.from_mm(*forward(64)), Problem.from_mm(*forward(256))
    assert not KERNELS["split_n"].legal(Problem.from_mm(*forward(40)))
    both = result(tmp_path / "both", {small: "split_n", large: "swap"}, "n")
    dispatcher = GemmDispatcher(both)
    dispatcher.varying("n").mm(*forward(40))
    assert rows_of(dispatcher)[str(large)]["nearest"] == 1
    alone = GemmDispatcher(result(tmp_path / "one", {small: "split_n"}, "n"))
    alone.varying("n").mm(*forward(40))
    assert (alone.use().rejections, alone.use().hits) == (1, 0)


def test_memory_does_not_grow_with_the_numbers_of_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch_experts, "_REMEMBERED", 8)
    problem = Problem.from_mm(*forward(64))
    dispatcher = GemmDispatcher(result(tmp_path / "t", {problem: "swap"}, "n"))
    experts = dispatcher.varying("n")
    a = torch.randn(200, IN)
    for tokens in (*range(32, 129), *range(32, 129), 150, 151, 152):
        experts.mm(a[:tokens], WEIGHT.t())
    assert len(experts._remembered) <= 8
    assert len(experts._served) == 3, "its own number, others near it, others"
    assert (dispatcher.use().hits, dispatcher.use().misses) == (2 * 97, 3)
    assert len(dispatcher.use().problems) == 2


def test_each_dimension_has_its_own_server() -> None:
    dispatcher = GemmDispatcher()
    assert dispatcher.varying("n").varying("n") is dispatcher.varying("n")
    with pytest.raises(ValueError, match="vary in n, not k"):
        dispatcher.varying("n").varying("k")
