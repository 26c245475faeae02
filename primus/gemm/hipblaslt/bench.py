"""The four questions put to hipblaslt-bench: the default, a survey, a sample, the error."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from primus.gemm.backends.base import ToolFailure
from primus.gemm.formats.bench_line import problem_arguments
from primus.gemm.hipblaslt.output import BenchRow
from primus.gemm.hipblaslt.results_file import Entry, parse_results
from primus.gemm.hipblaslt.tool import NAME, BenchRun, known_flags, run_tool
from primus.gemm.problem import Problem

# Raise it when times of one way of asking must not be mixed with those of another.
BENCH_VERSION = 1
SURVEY_SECONDS = 40.0
SAMPLE_SECONDS = 30.0
VERIFY_SECONDS = 60.0
# Operands of successive calls are copies of together this size: training finds few in the cache.
_ROTATING_MIB = 512
_HOW = ("--rotating", str(_ROTATING_MIB), "--print_kernel_info")
# Not in every release; what the tool's help does not name is left out.
_HOW_IF_KNOWN = ("--flush", "--use_gpu_timer")
# A sample's calls last together about this long; a survey's per solution.
_SAMPLE_US = 50_000.0
_SURVEY_US = 10_000.0
_SKIP_RATIO = "0.7"
# Products beyond this many operations are checked against the CPU with fewer columns.
_VERIFY_FLOPS = 1e12
_VERIFY_COLUMNS = 256


@dataclass(frozen=True)
class Survey:
    """What the tool said of all solutions of a problem in one go.

    Attributes:
        default: the row of what the library chooses by itself.
        rows: of all solutions that ran and were not given up as slow.
        entry: what the tool wrote to its tuning file; None when it did not come to that.
        incomplete: why solutions may be missing.
    """

    default: BenchRow
    rows: tuple[BenchRow, ...]
    entry: Entry | None
    incomplete: str | None = None


class Bench:
    """One GPU's tool, with a fixed workspace."""

    def __init__(self, tool: Path, workspace: int) -> None:
        self._tool = tool
        self._workspace = ("--workspace", str(workspace))
        self._known = known_flags(tool)

    def _run(
        self,
        problem: Problem,
        how: Sequence[str],
        seconds: float,
        environment: Mapping[str, str] | None = None,
    ) -> BenchRun:
        flags = (flag for flag in _HOW_IF_KNOWN if flag in self._known)
        workspace = self._workspace if "--workspace" in self._known else ()
        try:
            arguments = [*problem_arguments(problem), *_HOW, *flags, *workspace, *how]
        except ValueError as error:
            raise RuntimeError(str(error)) from error
        return run_tool(self._tool, arguments, seconds=seconds, environment=environment)

    def one(self, problem: Problem, index: int | None, us: float | None = None) -> BenchRow:
        """Time one solution, or what the library chooses by itself (None).

        Args:
            us: about what a call takes, to set the number of calls by.

        Raises:
            RuntimeError: the tool failed, timed another problem or another solution.
        """
        calls = _calls(us, _SAMPLE_US, 5, 100)
        run = self._run(problem, [*_which(index), *calls], SAMPLE_SECONDS)
        return _single(run, problem, index)

    def survey(self, problem: Problem) -> Survey:
        """Time all solutions of the heuristic's list, slow ones given up after their warm-up.

        Raises:
            RuntimeError: not even the default runs, or the tool timed another problem.
        """
        default = self.one(problem, None)
        # With HIPBLASLT_TUNING_FILE the tool's own defaults are others, and `index` means all.
        how = ["--algo_method", "heuristic", "--requested_solution", "-1"]
        how += _calls(default.us, _SURVEY_US, 3, 20)
        if "--skip_slow_solution_ratio" in self._known:
            how += ["--skip_slow_solution_ratio", _SKIP_RATIO]
        with tempfile.TemporaryDirectory(prefix="primus-hipblaslt-") as directory:
            # Fresh for every run: workers never append to one file.
            path = Path(directory) / f"tuning-{os.getpid()}.txt"
            environment = {"HIPBLASLT_TUNING_FILE": str(path)}
            run = self._run(problem, how, SURVEY_SECONDS, environment)
            entry = _written(path, default) if run.failure is None else None
        rows = tuple(row for row in run.output.rows if row.solution_index is not None)
        for row in rows:
            _check_problem(row, problem)
        if not rows:
            raise _failed(run, run.failure or f"{_nothing(run)} for all solutions: {run.said}")
        finished = run.output.winner is not None or len(rows) == 1
        if entry is None and run.failure is None and finished:
            raise RuntimeError(f"{NAME} wrote no entry: this release knows no override file")
        return Survey(default, rows, entry, run.failure or _incomplete(run, finished))

    def error(self, problem: Problem, index: int | None) -> float:
        """Norm of a solution's error against the CPU's result, relative to the result's norm.

        A product that a CPU computes too slowly is checked with fewer columns of the same depth.

        Raises:
            RuntimeError: the tool failed or printed no norm.
        """
        how = [*_which(index), "--verify", "--cold_iters", "1", "--iters", "1"]
        small = _smaller(problem)
        run = self._run(small, how, VERIFY_SECONDS)
        row = _single(run, small, index)
        try:
            return float(row.columns["norm_error"])
        except (KeyError, ValueError):
            raise RuntimeError("the tool printed no norm_error under --verify") from None


def _which(index: int | None) -> tuple[str, ...]:
    if index is None:
        return ("--algo_method", "heuristic", "--requested_solution", "1")
    return ("--algo_method", "index", "--solution_index", str(index))


def _calls(us: float | None, together: float, least: int, most: int) -> list[str]:
    """Warming and timed calls; the first of a problem, whose time nobody knows, takes 20."""
    count = 20 if us is None else min(most, max(least, round(together / us)))
    return ["--cold_iters", str(min(count, 20)), "--iters", str(count)]


def _single(run: BenchRun, problem: Problem, index: int | None) -> BenchRow:
    if run.failure is not None:
        raise _failed(run, run.failure)
    if len(run.output.rows) != 1:
        raise RuntimeError(f"{_nothing(run)}: {run.said}")
    row = run.output.rows[0]
    _check_problem(row, problem)
    if row.solution_index is None:
        raise RuntimeError("the tool names no solution index: its release is too old")
    if index is not None and row.solution_index != index:
        raise RuntimeError(f"the tool ran solution {row.solution_index}, asked for was {index}")
    return row


def _incomplete(run: BenchRun, finished: bool) -> str | None:
    bad = run.output.malformed
    if bad:
        return f"{len(bad)} rows could not be read: {bad[0]}"
    return None if finished else "the output broke off"


def _failed(run: BenchRun, why: str) -> RuntimeError:
    """A signal may be the GPU's doing: worth another try. A refusal is not."""
    return ToolFailure(why) if run.status is not None and run.status < 0 else RuntimeError(why)


def _nothing(run: BenchRun) -> str:
    bad = run.output.malformed
    return (
        f"the tool printed no time that can be read ({bad[0]})"
        if bad
        else (f"the tool printed {len(run.output.rows)} times")
    )


def _check_problem(row: BenchRow, problem: Problem) -> None:
    """The row must be of the problem that was asked for: a flag may have been dropped."""
    wanted: dict[str, str] = {
        **{name: str(getattr(problem, name)) for name in ("m", "n", "k", "batch_count")},
        **{name: getattr(problem, name) for name in ("transA", "transB", "activation_type")},
        "bias_vector": str(int(problem.bias_vector)),
    }
    for name, value in wanted.items():
        found = row.columns.get(name, value)
        if found != value:
            raise RuntimeError(f"the tool ran {name} = {found}, asked for was {value}")


def _written(path: Path, default: BenchRow) -> Entry | None:
    """The one entry that the tool wrote; early releases write it without its header."""
    if not path.exists():
        return None
    entries = parse_results(path.read_text(encoding="utf-8"), str(path)).entries
    if not entries:
        return None
    entry = entries[-1]
    if not entry.names:
        names = [*default.columns, "soulution_index", "gcnArchName", "CUs"]
        if len(names) == len(entry.values):
            return replace(entry, names=tuple(names))
    return entry


def _smaller(problem: Problem) -> Problem:
    if problem.flops <= _VERIFY_FLOPS:
        return problem
    if problem.batch_count > 1:
        fewer = max(1, int(problem.batch_count * _VERIFY_FLOPS / problem.flops))
        return replace(problem, batch_count=fewer)
    columns = int(problem.n * _VERIFY_FLOPS / problem.flops) // _VERIFY_COLUMNS * _VERIFY_COLUMNS
    return replace(problem, n=min(problem.n, max(_VERIFY_COLUMNS, columns)))
