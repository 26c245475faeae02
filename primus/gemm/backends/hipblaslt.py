"""hipBLASLt's solutions on AMD GPUs, timed by its own tool, one process of it per sample."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from primus.artifacts.gemm import TunedHeader, TunedRow
from primus.errors import UnavailableError
from primus.gemm.backends.base import DEFAULT, Backend, BackendSpec, Numerics, ToolFailure
from primus.gemm.hipblaslt.bench import BENCH_VERSION, Bench, Survey
from primus.gemm.hipblaslt.export import activate, export
from primus.gemm.hipblaslt.gpus import Gpu, gpus, only, visible
from primus.gemm.hipblaslt.node import read_node, tool_version
from primus.gemm.hipblaslt.output import BenchRow
from primus.gemm.hipblaslt.results_file import Entry
from primus.gemm.hipblaslt.tool import NAME, find_tool
from primus.gemm.measure import turns
from primus.gemm.problem import Problem
from primus.gemm.stack import Stack

# The fastest of a survey go on; starting the tool costs seconds, so they are few.
_RIVALS = 4
# Fewer rounds than asked for where the tool starts slowly, but enough for a median.
_MIN_ROUNDS = 3
_INTERLEAVE_SECONDS = 20.0
_PEAK_SIZE = 8192
# An error below half a unit in the last place of D is the rounding of D itself.
_EPSILON = {"bf16_r": 2.0**-9, "f16_r": 2.0**-12, "f32_r": 2.0**-25, "f64_r": 2.0**-54}
_EPSILON_FP8 = 2.0**-4
_SHORT = ("f8_r", "bf8_r", "f8_fnuz_r", "bf8_fnuz_r")


class HipblasltBackend(Backend):
    """The solutions of hipBLASLt's heuristic list; a candidate is called `solution_<index>`."""

    name = "hipblaslt"
    min_gain = 0.02
    bytes_per_us = 4_000_000.0

    def __init__(self, spec: BackendSpec) -> None:
        super().__init__(spec)
        self._problem: Problem | None = None
        self._survey: Survey | None = None
        self._rivals: dict[str, BenchRow] = {}
        self._errors: dict[str, float] = {}

    @cached_property
    def _gpus(self) -> list[Gpu]:
        return gpus()

    @cached_property
    def _bench(self) -> Bench:
        tool = find_tool()
        if tool is None:
            raise UnavailableError(f"{NAME} is gone. Fix: install it, or set HIPBLASLT_BENCH")
        return Bench(tool, self.spec.workspace_mib << 20)

    def unavailable(self) -> str | None:
        if find_tool() is None:
            return f"no {NAME} at HIPBLASLT_BENCH, on PATH or below ROCm's prefix"
        if not self._gpus:
            return "no AMD GPU was found (rocminfo, torch)"
        if not visible(len(self._gpus)):
            return "HIP_VISIBLE_DEVICES hides every GPU"
        return None

    def devices(self) -> int:
        return len(visible(len(self._gpus)))

    def worker_environment(self, number: int) -> Mapping[str, str]:
        entries = visible(len(self._gpus))
        return only(entries[number % len(entries)])

    def stack(self) -> Stack:
        """As the base says.

        Raises:
            UnavailableError: the tool times another build than training loads.
        """
        node, tool = read_node(), tool_version()
        if tool is not None and tool[1] != node.git_version:
            raise UnavailableError(
                f"{find_tool()} is of hipBLASLt {tool[1]}, training loads {node.git_version}: its "
                "solutions would not hold. Fix: set HIPBLASLT_BENCH to the tool of that build"
            )
        return Stack(
            backend=self.name,
            device=node.device,
            units=node.units,
            libraries={
                "hipblaslt": node.version,
                "hipblaslt_git": node.git_version,
                "rocm": node.rocm,
            },
            candidates=f"{NAME}-{BENCH_VERSION}",
            workspace=self.spec.workspace_mib << 20,
        )

    def candidates(self, problem: Problem) -> tuple[str, ...]:
        if problem.grouped_gemm:
            return ()
        self._open(problem)
        return (DEFAULT, *self._rivals)

    def why_no_candidates(self, problem: Problem) -> str:
        if problem.grouped_gemm:
            return "the override file does not reach grouped GEMMs"
        return super().why_no_candidates(problem)

    def _open(self, problem: Problem) -> Survey:
        if problem != self._problem or self._survey is None:
            survey = self._bench.survey(problem)
            self._problem, self._survey, self._errors = problem, survey, {}
            rows = sorted(survey.rows, key=lambda row: (row.us, row.place))
            rivals: dict[str, BenchRow] = {}
            for row in rows:
                if row.solution_index != survey.default.solution_index:
                    rivals.setdefault(f"solution_{row.solution_index}", row)
            self._rivals = dict(list(rivals.items())[:_RIVALS])
        return self._survey

    def measure(self, problem: Problem, candidate: str) -> float:
        return self._row(problem, candidate).us

    def _row(self, problem: Problem, candidate: str) -> BenchRow:
        known = self._open(problem).default if candidate == DEFAULT else self._rivals[candidate]
        return self._bench.one(problem, _index(candidate), known.us)

    def screen(self, problem: Problem, rounds: int) -> dict[str, list[float] | str]:
        survey = self._open(problem)
        same = [r.us for r in survey.rows if r.solution_index == survey.default.solution_index]
        samples: dict[str, list[float] | str] = {
            DEFAULT: [round(us, 3) for us in (survey.default.us, *same)]
        }
        for name, row in self._rivals.items():
            try:
                # By itself and by its index: what training's override will do.
                samples[name] = [round(us, 3) for us in (row.us, self.measure(problem, name))]
            except RuntimeError as error:
                samples[name] = str(error)
        return samples

    def interleave(
        self, problem: Problem, candidates: Sequence[str], rounds: int
    ) -> dict[str, list[float]]:
        samples: dict[str, list[float]] = {name: [] for name in candidates}
        begin = time.monotonic()
        for number, order in enumerate(turns(candidates, rounds)):
            spent = time.monotonic() - begin
            if number >= _MIN_ROUNDS and spent * (number + 1) / number > _INTERLEAVE_SECONDS:
                break
            for name in order:
                samples[name].append(round(self.measure(problem, name), 3))
        return samples

    def numerics(self, problem: Problem, candidate: str) -> Numerics:
        floor = _EPSILON_FP8 if problem.d_type in _SHORT else _EPSILON.get(problem.d_type, 0.0)
        default = max(self._error(problem, DEFAULT), floor)
        try:
            error = max(self._error(problem, candidate), floor)
        except ToolFailure as failure:
            # The default has just run: it is this solution's doing, another try is pointless.
            raise RuntimeError(str(failure)) from failure
        return Numerics.of(False, error, default)

    def _error(self, problem: Problem, candidate: str) -> float:
        self._open(problem)
        if candidate not in self._errors:
            self._errors[candidate] = self._bench.error(problem, _index(candidate))
        return self._errors[candidate]

    def peak(self, type_name: str) -> float:
        wide = "f64_r" if type_name == "f64_r" else "f32_r"
        problem = Problem(
            m=_PEAK_SIZE,
            n=_PEAK_SIZE,
            k=_PEAK_SIZE,
            transA="T",
            a_type=type_name,
            d_type="bf16_r" if type_name in _SHORT else type_name,
            compute_type=wide,
            scale_type=wide,
        )
        return problem.flops / (self._bench.one(problem, None).us * 1e6)

    def details(self, problem: Problem) -> Mapping[str, Any]:
        if problem != self._problem or self._survey is None:
            return {}
        survey = self._survey
        entry = survey.entry or self._own_entry(survey.default)
        # A kilobyte each: only for releases whose file has such columns.
        named = [n for n in ("solution_name", "kernel_name") if n in entry.names]
        return {
            "entry": entry.to_json(),
            "default_index": survey.default.solution_index,
            "incomplete": survey.incomplete,
            "solutions": {
                name: {"place": row.place, **{n: getattr(row, n) for n in named}}
                for name, row in self._rivals.items()
            },
        }

    def _own_entry(self, row: BenchRow) -> Entry:
        """What the tool would have written, had it come to the end of its survey."""
        gpu = self._gpus[0]
        columns = {
            **row.columns,
            "solution_index": str(row.solution_index),
            "gcnArchName": gpu.device,
            "CUs": str(gpu.units),
        }
        return Entry(tuple(columns), tuple(columns.values()))

    def write(
        self, header: TunedHeader, rows: Sequence[TunedRow], directory: Path
    ) -> Sequence[Path]:
        return export(header, rows, directory)

    def activate(self, tuned: Path) -> Mapping[str, str]:
        return activate(tuned)


def _index(candidate: str) -> int | None:
    return None if candidate == DEFAULT else int(candidate.removeprefix("solution_"))
