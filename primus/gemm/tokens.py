"""The GEMMs of experts: one recorded problem stands for all numbers of tokens that may come.

An expert receives another number of tokens in every step. What was recorded is the mean, or what
one step happened to have; it is tuned at several multiples of that, and training uses the nearest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from primus.artifacts.gemm import Tokens
from primus.gemm.problem import Problem
from primus.gemm.shapes import Shape

# Numbers of tokens are rounded to this; nearer ones do not differ in their kernels.
_STEP = 8


@dataclass(frozen=True)
class Wanted:
    """A shape to tune.

    Attributes:
        weight: calls per microbatch for the order of the search. The whole calls of a shape of
            which there are several sizes may leave one of them with none.
    """

    shape: Shape
    weight: float


def expand(shapes: Iterable[Shape], factors: Sequence[float]) -> list[Wanted]:
    """Replace each shape that varies by several, in its place; equal problems become one."""
    found: dict[Problem, Wanted] = {}
    for shape in shapes:
        for wanted in _sizes(shape, factors):
            known = found.get(wanted.shape.problem)
            found[wanted.shape.problem] = wanted if known is None else _joined(known, wanted)
    return list(found.values())


def _sizes(shape: Shape, factors: Sequence[float]) -> list[Wanted]:
    if shape.tokens is None:
        return [Wanted(shape, shape.calls)]
    scaled = {scale_tokens(shape.problem, shape.tokens, factor): factor for factor in factors}
    problems = sorted(scaled, key=lambda problem: _tokens(problem, shape.tokens))
    # What does not go into equal whole parts goes to the sizes nearest to the mean.
    by_distance = sorted(problems, key=lambda problem: abs(scaled[problem] - 1))
    parts = {
        problem: _share(shape.phases, len(problems), place)
        for place, problem in enumerate(by_distance)
    }
    return [
        Wanted(
            Shape(problem, sum(parts[problem].values()), parts[problem], shape.tokens),
            shape.calls / len(problems),
        )
        for problem in problems
    ]


def _tokens(problem: Problem, tokens: Tokens | None) -> int:
    return problem.n if tokens == "n" else problem.k


def _share(phases: Mapping[str, int], parts: int, place: int) -> dict[str, int]:
    return {phase: calls // parts + (place < calls % parts) for phase, calls in phases.items()}


def _joined(one: Wanted, other: Wanted) -> Wanted:
    phases = dict(one.shape.phases)
    for phase, calls in other.shape.phases.items():
        phases[phase] = phases.get(phase, 0) + calls
    shape = Shape(
        one.shape.problem,
        one.shape.calls + other.shape.calls,
        dict(sorted(phases.items())),
        one.shape.tokens or other.shape.tokens,
    )
    return Wanted(shape, one.weight + other.weight)


def scale_tokens(problem: Problem, tokens: Tokens, factor: float) -> Problem:
    """The problem with `factor` times the tokens, in whole multiples of 8, at least 8.

    Leading dimensions and batch strides that follow from the sizes follow them; larger ones, of
    views into larger buffers, stay where the new matrix still fits.
    """
    names = asdict(problem)
    sizes: dict[str, Any] = _scaled_member(names, names, tokens, factor)
    groups = tuple(
        replace(group, **_scaled_member(asdict(group), names, tokens, factor))
        for group in problem.groups
    )
    return replace(problem, **sizes, groups=groups)


def _scaled_member(
    sizes: Mapping[str, int], problem: Mapping[str, object], tokens: Tokens, factor: float
) -> dict[str, int]:
    """The changed sizes of one member of a (grouped) GEMM."""
    old: dict[str, int] = {name: sizes[name] for name in ("m", "n", "k")}
    new = old | {tokens: max(_STEP, _STEP * int(old[tokens] * factor / _STEP + 0.5))}
    changed: dict[str, int] = {tokens: new[tokens]}
    for matrix, (down, right) in _matrices(problem).items():
        ld, stride = f"ld{matrix}", f"stride_{matrix}"
        changed[ld] = _follow(sizes[ld], old[down], new[down])
        changed[stride] = _follow(sizes[stride], sizes[ld] * old[right], changed[ld] * new[right])
    return changed


def _matrices(problem: Mapping[str, object]) -> dict[str, tuple[str, str]]:
    """Per matrix which sizes its rows and columns in memory are."""
    a = ("m", "k") if problem["transA"] == "N" else ("k", "m")
    b = ("k", "n") if problem["transB"] == "N" else ("n", "k")
    d = ("m", "n")
    return {"a": a, "b": b, "c": d, "d": d, "e": d}


def _follow(value: int, old: int, new: int) -> int:
    """A distance in memory, once what it spans goes from `old` to `new` elements."""
    if value < old or old == new:
        return value
    if value % old == 0:
        return value // old * new
    return max(value, new)
