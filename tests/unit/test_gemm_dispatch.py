"""Every kernel against torch.mm in every layout, and what the dispatcher counts."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from primus.artifacts.gemm import TunedHeader, TunedRow, save_lines
from primus.errors import StackMismatchError
from primus.gemm.backends import load_backend
from primus.gemm.backends.base import BackendSpec
from primus.gemm.backends.cpu import cpu_stack
from primus.gemm.dispatch import GemmDispatcher
from primus.gemm.kernels import KERNELS, dispatchable
from primus.gemm.measure import measure_problem
from primus.gemm.peak import measure_peak
from primus.gemm.problem import Problem
from primus.gemm.tuned import TunedResult

LAYOUTS = ["NN", "NT", "TN", "TT", "slices"]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def operands(layout: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    m, n, k = 96, 128, 160

    def matrix(rows: int, columns: int, transposed: bool) -> torch.Tensor:
        shape = (columns, rows) if transposed else (rows, columns)
        made = torch.randn(shape, generator=generator).to(dtype)
        return made.t() if transposed else made

    if layout == "slices":
        return matrix(n, k + 8, False)[:, 8:], matrix(k, 3 * m, False)[:, m : 2 * m]
    return matrix(n, k, layout[1] == "T"), matrix(k, m, layout[0] == "T")


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    assert found.dtype == wanted.dtype
    error = (found.double() - wanted.double()).norm() / wanted.double().norm()
    assert float(error) <= tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compute_what_torch_does(name: str, layout: str, dtype: torch.dtype) -> None:
    a, b = operands(layout, dtype)
    kernel = KERNELS[name]
    tolerance = 2e-2 if kernel.lossy else TOLERANCE[dtype]
    plain = Problem.from_mm(a, b)
    exact = a.double() @ b.double()
    if kernel.legal(plain):
        found = kernel.mm(a, b)
        assert found.is_contiguous()
        close(found, exact.to(dtype), tolerance)
    buffer = torch.randn(a.shape[0], b.shape[1]).to(dtype)
    if kernel.legal(Problem.from_addmm(buffer, a, b, out=buffer)):
        wanted = (buffer.double() + exact).to(dtype)
        assert kernel.accumulate(a, b, buffer) is buffer
        close(buffer, wanted, tolerance)
    if kernel.legal(plain):
        main_grad = torch.randn(a.shape[0], b.shape[1])
        wanted = (main_grad.double() + exact).float()
        kernel.accumulate(a, b, main_grad)
        close(main_grad, wanted, tolerance)


SIDES = st.sampled_from([1, 2, 3, 16, 63, 64, 65, 130])
MARGINS = st.sampled_from([0, 1, 8])


@settings(max_examples=12, deadline=None)
@given(SIDES, SIDES, SIDES, st.booleans(), st.booleans(), MARGINS, st.booleans())
def test_every_legal_kernel_of_any_shape_and_view(m, n, k, trans_a, trans_b, margin, low) -> None:
    """Odd sides, single rows, views with gaps: what the shapes of a model never are by chance."""
    dtype = torch.bfloat16 if low else torch.float32

    def matrix(rows: int, columns: int, transposed: bool) -> torch.Tensor:
        shape = (columns, rows) if transposed else (rows, columns)
        wide = torch.randn(shape[0], shape[1] + margin).to(dtype)[:, margin:]
        return wide.t() if transposed else wide

    a, b = matrix(n, k, trans_b), matrix(k, m, trans_a)
    problem = Problem.from_mm(a, b)
    exact = a.double() @ b.double()
    size = (a.double().abs() @ b.double().abs()).mean()
    for name, kernel in KERNELS.items():
        if not kernel.legal(problem):
            continue
        found = kernel.mm(a, b)
        assert (found.shape, found.dtype) == ((n, m), dtype), name
        error = (found.double() - exact).abs().mean() / size
        assert error <= (1e-2 if low or kernel.lossy else 1e-6), name


def tuned(path, choices: dict[Problem, str], **stack) -> TunedResult:
    rows = [
        TunedRow(
            problem=problem.to_json(),
            text=str(problem),
            calls=1,
            phases={"forward": 1},
            flops=problem.flops,
            default_us=1.0,
            candidate=candidate,
            tuned_us=1.0,
            gain=0.0,
            numerics="exact",
            reason="",
            others={},
        )
        for problem, candidate in choices.items()
    ]
    header = TunedHeader(
        backend="cpu",
        stack=cpu_stack(1).to_json() | stack,
        settings={},
        shapes_sha256="",
        peak_tflops={},
        coverage=1.0,
        problems=len(rows),
        timed=len(rows),
        winners=0,
        failed=0,
        default_us=1.0,
        tuned_us=1.0,
        stopped="complete",
    )
    save_lines(path, header, rows)
    return TunedResult.load(path)


def test_hits_defaults_misses_and_rejections(tmp_path) -> None:
    a, b = operands("NN", torch.float32)
    narrow = a[:32].contiguous()  # n = 32: too few rows to split
    by_problem = {
        Problem.from_mm(a, b): "split_m",
        Problem.from_mm(a, b[:, :64]): "default",
        Problem.from_mm(a[:64], b): "from_the_future",
        Problem.from_mm(narrow, b): "split_n",
        Problem(m=1, n=1, k=1, batch_count=2): "default",
        Problem(m=3, n=3, k=3): "swap",
    }
    dispatcher = GemmDispatcher(tuned(tmp_path / "t.jsonl", by_problem))
    for count, (left, right) in enumerate(
        [(a, b), (a, b[:, :64]), (a[:64], b), (narrow, b), (a[:70], b)], start=1
    ):
        for _ in range(count):
            torch.testing.assert_close(dispatcher.mm(left, right), left @ right)
    use = dispatcher.use()
    assert (use.hits, use.defaults, use.rejections, use.misses) == (1, 2, 3 + 4, 5)
    told = {(row["use"], row.get("why")): row["calls"] for row in use.problems}
    assert told == {
        ("hit", None): 1,
        ("default", None): 2,
        ("rejection", "from_the_future is not known here"): 3,
        ("rejection", "split_n: it cannot compute this problem here"): 4,
        ("miss", "not in the tuned result"): 5,
        ("unused", "batched and grouped GEMMs do not go through the dispatcher"): 0,
        ("unused", "never called"): 0,
    }


def test_accumulation_is_looked_up_as_what_it_is(tmp_path) -> None:
    a, b = operands("NT", torch.float32)
    out = torch.zeros(a.shape[0], b.shape[1])
    into = Problem.from_addmm(out, a, b, out=out)
    low = Problem.from_mm(a.bfloat16(), b.bfloat16())
    dispatcher = GemmDispatcher(tuned(tmp_path / "t", {into: "mm_add", low: "upcast"}))
    assert dispatcher.mm_accumulate(a, b, out) is out
    dispatcher.mm_accumulate(a.bfloat16(), b.bfloat16(), out)
    close(out, 2 * (a.double() @ b.double()).float(), 1e-2)
    dispatcher.mm_accumulate(a, b, torch.zeros(b.shape[1], a.shape[0]).t())
    use = dispatcher.use()
    assert (use.hits, use.misses) == (2, 1)
    assert {row["candidate"] for row in use.problems if row["use"] == "hit"} == {
        "mm_add",
        "upcast",
    }


def test_views_of_one_problem_share_its_kernel(tmp_path) -> None:
    a, b = torch.randn(1, 160), torch.randn(160, 96)
    strange = torch.randn(160, 7)[:, 0][None]  # one row with a stride of 7 is read as a copy
    dispatcher = GemmDispatcher(tuned(tmp_path / "t", {Problem.from_mm(a, b): "split_m"}))
    dispatcher.mm(a, b)
    dispatcher.mm(a.as_strided((1, 160), (999, 1)), b)
    torch.testing.assert_close(dispatcher.mm(strange, b), strange @ b)
    assert dispatcher.use().hits + dispatcher.use().misses == 3
    assert dispatcher.use().hits >= 2


def test_works_inside_an_autograd_function(tmp_path) -> None:
    x, w = (t.requires_grad_() for t in (torch.randn(128, 96), torch.randn(64, 96)))
    names = iter(["split_m", "split_n", "split_k"])
    g = torch.randn(128, 64)
    products = [(x, w.t()), (g, w), (g.t(), x)]
    choices = {Problem.from_mm(*product): next(names) for product in products}
    dispatcher = GemmDispatcher(tuned(tmp_path / "t", choices))

    class Linear(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return dispatcher.mm(x, w.t())

        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            return dispatcher.mm(g, w), dispatcher.mm(g.t(), x)

    Linear.apply(x, w).backward(g)
    assert dispatcher.use().hits == 3
    torch.testing.assert_close(x.grad, g @ w.detach())
    torch.testing.assert_close(w.grad, g.t() @ x.detach(), rtol=1e-4, atol=1e-4)


def test_another_stack_is_refused_naming_both_values(tmp_path) -> None:
    path = tmp_path / "t.jsonl"
    tuned(path, {}, threads=8, device="Other CPU 1/2/3")
    here = cpu_stack(1)
    with pytest.raises(StackMismatchError) as caught:
        GemmDispatcher.load(path, here)
    message = str(caught.value)
    assert str(path) in message
    assert f"device = 'Other CPU 1/2/3' there, {here.device!r} here" in message
    assert "threads = 8 there, 1 here" in message
    assert "tune on this machine" in message
    assert "\n" not in message


def test_a_result_of_this_machine_is_taken(tmp_path) -> None:
    path = tmp_path / "t.jsonl"
    tuned(path, {Problem(m=1, n=1, k=1): "default"})
    assert GemmDispatcher.load(path, cpu_stack(1)).use().problems[0]["use"] == "unused"


def test_the_stack_of_this_machine() -> None:
    stack = cpu_stack(3)
    assert stack.threads == 3
    assert stack.libraries["torch"] == torch.__version__
    assert stack.device
    assert json.loads(json.dumps(stack.to_json())) == stack.to_json()
    assert stack.key != cpu_stack(2).key


CPU = BackendSpec(name="cpu", threads=1)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_the_cpu_backend_times_every_legal_kernel(beta: float) -> None:
    backend = load_backend(CPU)
    problem = Problem(m=64, n=96, k=128, transA="T", a_type="bf16_r", beta=beta)
    times = measure_problem(backend, problem)
    assert list(times) == list(backend.candidates(problem))
    assert next(iter(times)) == "default"
    assert {"split_m", "upcast"} < set(times)
    assert ("mm_add" in times) is bool(beta)
    assert "bf16_inputs" not in times
    assert all(t.error is None and min(t.screen) > 0 for t in times.values())


@pytest.mark.parametrize(
    ("name", "type_name", "kinds"),
    [
        ("default", "bf16_r", {"exact"}),
        ("swap", "f32_r", {"exact", "rounding"}),
        ("split_k", "f32_r", {"exact", "rounding"}),
        ("upcast", "bf16_r", {"exact", "rounding"}),
        ("bf16_inputs", "f32_r", {"lossy"}),
    ],
)
def test_numerics_are_verified(name: str, type_name: str, kinds: set[str]) -> None:
    backend = load_backend(CPU)
    found = backend.numerics(Problem(m=256, n=128, k=512, a_type=type_name), name)
    assert found.kind in kinds
    assert (found.error_ratio == 1.0) or found.kind != "exact"


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (Problem(m=8, n=8, k=8, batch_count=2, stride_a=64, stride_b=64), "batched"),
        (Problem(m=8, n=8, k=8, bias_vector=True), "epilogue"),
        (Problem(m=8, n=8, k=8, alpha=0.5), "alpha = 1"),
        (Problem(m=8, n=8, k=8, a_type="f64_r"), "no kernels for f64_r"),
    ],
)
def test_what_the_dispatcher_never_meets_is_timed_but_not_tuned(problem, reason) -> None:
    backend = load_backend(CPU)
    assert backend.candidates(problem) == ("default",)
    assert list(measure_problem(backend, problem)) == ["default"]
    assert reason in backend.why_no_candidates(problem)
    assert reason in (dispatchable(problem) or "")


def test_types_that_a_cpu_cannot_multiply_are_not_timed() -> None:
    backend = load_backend(CPU)
    problem = Problem(m=8, n=8, k=8, a_type="f8_r", d_type="bf16_r")
    assert measure_problem(backend, problem) == {}
    with pytest.raises(RuntimeError, match="f8_r"):
        backend.peak("f8_r")


def test_the_peak_is_positive(monkeypatch) -> None:
    monkeypatch.setattr("primus.gemm.peak._SIZES", {"cpu": (64, 128)})
    monkeypatch.setattr("primus.gemm.peak._GROUP_SECONDS", 0.01)
    assert measure_peak(torch.float32) > 0
    assert measure_peak(torch.bfloat16) > 0
