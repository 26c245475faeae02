"""How many GEMM problems the full-size models have, share, and need to have tuned.

Traced without memory or device, each model at its own parallel layout, then tuned one after the
other through the real search with one store, over recorded times (backend `replay`, one kernel
each, so that only the counting is real). Columns:

    calls        GEMMs of a training step: one tensor-parallel rank, all pipeline stages, all
                 micro-batches
    problems     that differ; the wgrad of a tied size, a stride or beta makes another one
    shared       of these, also problems of a model further up
    guide        runs of hipblaslt-bench in the flow that the guide describes: each problem of the
                 model, whatever was tuned before, with no limit of coverage, on every node of the
                 job. A lower bound: its dedupe keeps the solution index and the ranks' order, and
                 with real routing each number of tokens of an expert is a line of its own, where
                 this counts one
    ours         problems timed for this model: what makes up 95 % of the estimated GEMM time,
                 experts at several numbers of tokens, and nothing that the store has
    alone        the same with an empty store

Attention is traced as batched GEMMs; with transformer-engine's it is no GEMM of the library.

    python -m benchmarks.tuning_counts
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.trace import ROOT, settings_of
from primus.config.layout import layout
from primus.config.load import load
from primus.gemm.backends.base import BackendSpec
from primus.gemm.problem import Problem
from primus.gemm.search import SearchSettings, tune
from primus.gemm.shapes import Shape, read_shapes, write_shapes
from primus.gemm.tokens import expand
from primus.shapes_dump import trace

MODELS = (
    "llama2_7B",
    "llama2_70B",
    "llama3_8B",
    "llama3_70B",
    "llama3.1_8B",
    "llama3.1_70B",
    "deepseek_v2_lite",
    "deepseek_v2",
    "deepseek_v3",
)
FACTORS = (0.5, 1.0, 2.0)
# Of an H200 (configs/hardware/h200.yaml); it orders the problems.
TFLOPS = 795.0


@dataclass(frozen=True)
class Row:
    """The counts of one model."""

    model: str
    calls: int
    problems: int
    shared: int
    guide: int
    ours: int
    alone: int


def main(argv: Sequence[str] | None = None) -> None:
    """Count and print a table in Markdown."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tuning_counts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiment", nargs="*", default=MODELS, help="default: the nine models")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        shapes = {model: _shapes(model, Path(name)) for model in args.experiment}
        rows = _count(shapes, Path(name))
    names = ("calls", "problems", "shared", "guide", "ours", "alone")
    print(f"| model | {' | '.join(names)} |")
    print(f"|---|{'---:|' * len(names)}")
    for row in rows:
        print(f"| {row.model} | " + " | ".join(f"{getattr(row, n):,}" for n in names) + " |")
    sums = {n: sum(getattr(row, n) for row in rows) for n in names}
    print("| together | " + " | ".join(f"{sums[n]:,}" for n in names) + " |")


def _shapes(model: str, directory: Path) -> list[Shape]:
    found = trace(settings_of(model))
    path = directory / f"{model}.jsonl"
    write_shapes(path, found.calls, source="trace", model={}, varying=found.varying)
    return read_shapes(path)[1]


def _count(shapes: Mapping[str, list[Shape]], directory: Path) -> list[Row]:
    spec = _recording(shapes, directory / "recording.json")
    seen: set[Problem] = set()
    rows = []
    for model, own in shapes.items():
        settings = load(model, root=ROOT, stages=()).settings
        samples = settings.micro_batch_size * layout(settings).data
        problems = {shape.problem for shape in own}
        rows.append(
            Row(
                model=model,
                calls=sum(s.calls for s in own) * (settings.global_batch_size // samples),
                problems=len(problems),
                shared=len(problems & seen),
                guide=len(problems) * settings.nodes,
                ours=_measured(own, spec, directory / "store"),
                alone=_measured(own, spec, directory / f"store of {model}"),
            )
        )
        seen |= problems
    return rows


def _measured(shapes: list[Shape], spec: BackendSpec, store: Path) -> int:
    settings = SearchSettings(coverage=0.95, expert_token_factors=FACTORS)
    return tune(shapes, spec, settings, str(store)).measured


def _recording(shapes: Mapping[str, list[Shape]], path: Path) -> BackendSpec:
    """Times for everything that the search may ask for."""
    wanted = Counter(
        wanted.shape.problem for own in shapes.values() for wanted in expand(own, FACTORS)
    )
    problems: list[dict[str, Any]] = [
        {"problem": p.to_json(), "candidates": {"default": {"us": [p.flops / TFLOPS / 1e6]}}}
        for p in wanted
    ]
    types = {p.a_type for p in wanted}
    content = {
        "kind": "gemm-replay",
        "peak_tflops": dict.fromkeys(types, TFLOPS),
        "problems": problems,
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return BackendSpec(name="replay", replay_file=str(path))


if __name__ == "__main__":
    main()
