"""hipBLASLt's bench lines (`HIPBLASLT_LOG_MASK=32`): one command of hipblaslt-bench per call.

A line is read into what is computed, how it was run, and how it was written, and written again
byte for byte. Example:

    line = BenchLine.parse(text)
    assert line.render() == text
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from primus.gemm.formats.bench_flags import (
    FLAGS,
    PROBLEM,
    REQUIRED,
    RUN,
    SIZES,
    Flag,
    Value,
    order_of,
    spell,
)
from primus.gemm.problem import Group, Problem

PROGRAM = "hipblaslt-bench"
GAP = ""
NEWEST = "2026"

Piece = tuple[str, str | None]
"""A flag and, where `spell` spells it otherwise, its text; an empty field has the flag `GAP`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """How a line runs its problem; absent flags have the value that changes nothing."""

    api_method: str = "c"
    splitk: int = 0
    wgm: int = 0
    algo_method: str = ""
    solution_index: int = -1
    flush: bool = False
    rotating: int = 0
    cold_iters: int = 0
    iters: int = 0


@dataclass(frozen=True, slots=True)
class BenchLine:
    """One line: the problem, the run, and the order and spelling of the line.

    Attributes:
        pieces: the line's flags in order, empty fields among them.
    """

    problem: Problem
    run: Run
    pieces: tuple[Piece, ...]

    @classmethod
    def parse(cls, text: str) -> BenchLine:
        """Read a line without its newline.

        Raises:
            ValueError: no bench line, a flag that is unknown, twice there or without its value, a
                value out of form, or a line that lacks flags that every release writes.
        """
        tokens = text.split(" ")
        if tokens[0] != PROGRAM:
            raise ValueError(f"does not start with {PROGRAM}")
        members: list[dict[str, Value]] = [{}]
        values: dict[str, Value] = {}
        pieces: list[Piece] = []
        for flag, shown in _pairs(tokens[1:]):
            field, value, piece = _read(flag, shown)
            pieces.append(piece)
            if flag == GAP:
                continue
            if flag == "-m" and "m" in members[-1]:
                members.append({})
            into = members[-1] if flag in SIZES else values
            if field in into:
                raise ValueError(f"{flag} stands twice")
            into[field] = value
        missing = REQUIRED.difference(flag for flag, _ in pieces)
        if missing:
            raise ValueError(f"lacks {' '.join(sorted(missing))}")
        return cls(_problem(members, values), _run(values), tuple(pieces))

    @classmethod
    def of(cls, problem: Problem, run: Run | None = None, *, release: str = NEWEST) -> BenchLine:
        """The line that a release of hipBLASLt writes for a problem.

        What that release does not write but hipblaslt-bench takes stands at the end.

        Args:
            release: a key of `bench_flags.RELEASES`.

        Raises:
            ValueError: the problem has what hipBLASLt cannot compute.
        """
        run = run or Run()
        flags = [flag for flag, _ in _layout(problem, run, order_of(release))] + [GAP]
        shown = _texts(problem, run, [(flag, None) for flag in flags], release)
        usual = _texts(problem, run, [(flag, None) for flag in flags])
        return cls(
            problem,
            run,
            tuple(
                (flag, None if text == plain else text)
                for flag, text, plain in zip(flags, shown, usual, strict=True)
            ),
        )

    def render(self) -> str:
        """The line, without a newline."""
        return " ".join([PROGRAM, *_texts(self.problem, self.run, self.pieces)])


def problem_arguments(problem: Problem) -> list[str]:
    """Arguments of hipblaslt-bench that state a problem and nothing of how to run it.

    What has the program's default is left out, so that programs without the flag take the rest.

    Raises:
        ValueError: as `BenchLine.of`.
    """
    order = [
        entry if _flag(entry) in REQUIRED else f"{_flag(entry)}?"
        for entry in order_of(NEWEST)
        if _flag(entry) not in RUN
    ]
    pieces = [piece for piece in _layout(problem, Run(), order) if piece[0] != GAP]
    return " ".join(_texts(problem, Run(), pieces)).split(" ")


def _pairs(tokens: list[str]) -> Iterator[tuple[str, str | None]]:
    """Flags with the text of their value; None where a flag stands alone."""
    rest = iter(tokens)
    flag = next(rest, None)
    while flag is not None:
        if flag not in FLAGS and flag != GAP:
            raise ValueError(f"unknown argument {flag[:40]!r}")
        after = next(rest, None)
        if flag == GAP or _is_alone(FLAGS[flag], after):
            yield flag, None
            flag = after
        else:
            yield flag, after
            flag = next(rest, None)


def _is_alone(known: Flag, after: str | None) -> bool:
    """Whether the flag has no value, seeing what comes after it; an empty text is a value."""
    return known.read is None or after is None or after in FLAGS or (known.alone and after == GAP)


@lru_cache(maxsize=1 << 12)
def _read(flag: str, shown: str | None) -> tuple[str, Value, Piece]:
    """Field and value of a flag, and how it was written."""
    if flag == GAP:
        return "", False, (GAP, None)
    known = FLAGS[flag]
    if known.read is None:
        value: Value = True
    elif shown is not None:
        try:
            value = known.read(shown)
        except ValueError as error:
            raise ValueError(f"{flag}: {error}") from None
    elif known.bare is not None:
        value = known.bare
    else:
        raise ValueError(f"{flag} has no value")
    written = flag if shown is None else f"{flag} {shown}"
    return known.field, value, (flag, None if written == spell(flag, value) else written)


def _problem(members: list[dict[str, Value]], values: Mapping[str, Value]) -> Problem:
    first, *others = members
    grouped = bool(values.get("grouped_gemm"))
    if others and not grouped:
        raise ValueError("sizes stand twice without --grouped_gemm")
    needed = {SIZES[flag].field for flag in REQUIRED if flag in SIZES}
    for member in members:
        if needed - member.keys():
            raise ValueError(f"a member lacks {' '.join(sorted(needed - member.keys()))}")
    fit: dict[str, Any] = {
        known.field: values[known.field] for known in PROBLEM.values() if known.field in values
    }
    arguments = [fit.pop(name) for name in _ARGUMENTS if name in fit]
    if "activation_arg2" in values and "activation_arg1" not in values:
        raise ValueError("--activation_arg2 stands without --activation_arg1")
    groups = tuple(Group(**{name: int(value) for name, value in m.items()}) for m in others)
    return Problem(**(fit | first), activation_args=tuple(arguments), groups=groups)


_ARGUMENTS = ("activation_arg1", "activation_arg2")
_RUN_FIELDS = frozenset(field.name for field in fields(Run))


def _run(values: Mapping[str, Value]) -> Run:
    plain: dict[str, Any] = {name: v for name, v in values.items() if name in _RUN_FIELDS}
    return Run(**plain)


def _flag(entry: str) -> str:
    return entry.rstrip("?~")


# What a line of a single GEMM states and a grouped one does not: other code writes that.
_UNGROUPED = frozenset({"--alphai", "--betai", "--batch_mode", "--bias_stride"})


def _layout(problem: Problem, run: Run, order: Sequence[str]) -> Iterator[Piece]:
    values = _values(problem, run)
    grouped = problem.grouped_gemm
    sizes = [entry for entry in order if _flag(entry) in SIZES]
    seen = {_flag(entry) for entry in order}
    for entry in order:
        flag = _flag(entry)
        if not grouped or flag not in SIZES:
            yield from _some([f"{flag}?" if grouped and flag in _UNGROUPED else entry], values)
        elif flag == "-m":
            if "--grouped_gemm" not in seen:
                yield "--grouped_gemm", None
                yield GAP, None
            for member in _members(problem):
                yield from _some(sizes, member, gaps=False)
    rest = FLAGS.keys() - seen - SIZES.keys() - {"--grouped_gemm"}
    yield from _some([f"{flag}?" for flag in FLAGS if flag in rest], values)


def _some(entries: list[str], values: Mapping[str, Value], gaps: bool = True) -> Iterator[Piece]:
    for entry in entries:
        flag = _flag(entry)
        known = FLAGS[flag]
        value = values.get(known.field, known.absent)
        if value != known.absent or (entry == flag and value != ""):
            yield flag, None
        elif entry.endswith("~") and gaps:
            yield GAP, None


def _members(problem: Problem) -> list[dict[str, Value]]:
    first = {known.field: getattr(problem, known.field) for known in SIZES.values()}
    return [
        first,
        *({k.field: getattr(g, k.field) for k in SIZES.values()} for g in problem.groups),
    ]


def _values(problem: Problem, run: Run) -> dict[str, Value]:
    """Every field by name, the parameters of the activation one by one.

    Raises:
        ValueError: what hipblaslt-bench has no argument for.
    """
    if problem.fast_accumulation:
        raise ValueError("hipblaslt-bench has no argument for fast accumulation")
    arguments = problem.activation_args
    if len(arguments) > len(_ARGUMENTS):
        raise ValueError(f"hipblaslt-bench takes 2 activation arguments, not {len(arguments)}")
    values: dict[str, Value] = dict(zip(_ARGUMENTS, arguments, strict=False))
    for known in (*SIZES.values(), *PROBLEM.values()):
        if known.field not in _ARGUMENTS:
            values[known.field] = getattr(problem, known.field)
    return values | {name: getattr(run, name) for name in _RUN_FIELDS}


def _texts(problem: Problem, run: Run, pieces: Sequence[Piece], release: str = "") -> Iterator[str]:
    values = _values(problem, run)
    members = iter(_members(problem))
    sizes = next(members)
    again = False
    for flag, written in pieces:
        if flag == "-m":
            sizes = next(members) if again else sizes
            again = True
        if flag == GAP or written is not None:
            yield written or GAP
        else:
            value = (sizes if flag in SIZES else values)[FLAGS[flag].field]
            yield spell(flag, value, release)
