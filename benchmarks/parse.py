"""How fast the dumps of many ranks are read, and in how much memory, against a plain line loop.

Dumps are written to a temporary directory: hipBLASLt bench lines and cuBLASLt trace lines of
training steps, in which a few dozen problems repeat (every trace line differs from every other in
its time and addresses), and bench lines that are all distinct, as no training writes them. Each
reading is a process of its own; loop and reader take turns. Times are processor time: the files lie
in memory, and other processes do not count.

    python -m benchmarks.parse
    python -m benchmarks.parse --ranks 400 --lines 20000 --rounds 3
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from primus.gemm.formats.bench_line import BenchLine, Run
from primus.gemm.formats.cublaslt_log import parse_trace, split_trace
from primus.gemm.formats.stream import Dump, read_dump
from primus.gemm.problem import Problem

Called = tuple[Problem, int]


def parse_bench(line: str) -> Called:
    """What the dump of hipBLASLt counts."""
    read = BenchLine.parse(line)
    return read.problem, read.run.solution_index


def loop(paths: Sequence[Path]) -> int:
    """Count lines and do nothing else."""
    lines = 0
    for path in paths:
        with path.open("rb") as file:
            for _ in file:
                lines += 1
    return lines


def read_bench(paths: Sequence[Path]) -> int:
    """Read bench lines."""
    return _distinct(read_dump(paths, parse_bench))


def read_trace(paths: Sequence[Path]) -> int:
    """Read trace lines."""
    return _distinct(read_dump(paths, parse_trace, split=split_trace))


def _distinct(dump: Dump[Called] | Dump[tuple[Problem, str]]) -> int:
    if dump.skipped:
        raise SystemExit(f"{dump.skipped} lines were not understood: {dump.examples}")
    return len(dump.calls)


def step(rng: random.Random, problems: int, calls: int) -> list[Problem]:
    """The calls of one step: layers of the same products, in order."""
    sizes = [rng.choice([1024, 2048, 4096, 8192, 14336]) for _ in range(3 * problems)]
    kinds = [
        Problem(
            m=sizes[3 * i] + 8 * i,
            n=sizes[3 * i + 1],
            k=sizes[3 * i + 2],
            transA="TNN"[i % 3],
            transB="NNT"[i % 3],
            a_type="bf16_r",
            beta=float(i % 3 == 2),
            any_stride=True,
        )
        for i in range(problems)
    ]
    return [kinds[number % problems] for number in range(calls)]


def bench_lines(rng: random.Random, problems: Sequence[Problem], lines: int) -> Iterator[str]:
    """What a rank writes under HIPBLASLT_LOG_MASK=32; one call of a thousand has another index."""
    usual = {
        (p, i): BenchLine.of(p, Run(algo_method="index", solution_index=i), release="2025").render()
        for p in set(problems)
        for i in (1000 + p.m, 7)
    }
    for number in range(lines):
        problem = problems[number % len(problems)]
        yield usual[problem, 7 if rng.random() < 0.001 else 1000 + problem.m]


def distinct_lines(_: random.Random, problems: Sequence[Problem], lines: int) -> Iterator[str]:
    """As many problems as lines."""
    text = BenchLine.of(problems[0], Run(algo_method="index"), release="2025").render()
    head, tail = text.split(" -n ")
    tail = tail.partition(" ")[2]
    for number in range(lines):
        yield f"{head} -n {number + 1} {tail}"


def trace_lines(rng: random.Random, problems: Sequence[Problem], lines: int) -> Iterator[str]:
    """What a rank writes under CUBLASLT_LOG_LEVEL=2."""
    for number in range(lines):
        p = problems[number % len(problems)]
        a, b, c, w = (f"0X7F{rng.getrandbits(40):010X}" for _ in range(4))
        rows_a, columns_a = (p.m, p.k) if p.transA == "N" else (p.k, p.m)
        rows_b, columns_b = (p.k, p.n) if p.transB == "N" else (p.n, p.k)
        shape = f"type=R_16BF rows={p.m} cols={p.n} ld={p.m}"
        trans = (" transa=OP_T" * (p.transA == "T")) + (" transb=OP_T" * (p.transB == "T"))
        yield (
            f"[2026-05-04 15:{number // 60 % 60:02}:{number % 60:02}][cublasLt][53055][Trace]"
            f"[cublasLtTSTMatmul] A={a} Adesc=[type=R_16BF rows={rows_a} cols={columns_a} "
            f"ld={rows_a}] B={b} Bdesc=[type=R_16BF rows={rows_b} cols={columns_b} ld={rows_b}] "
            f"C={c} Cdesc=[{shape}] D={c} Ddesc=[{shape}] computeDesc=[computeType=COMPUTE_32F "
            f"scaleType=R_32F{trans} smCountTarget=132] algo=[algoId=66 "
            "tile=MATMUL_TILE_128x256 stages=MATMUL_STAGES_64xAUTO clusterShape="
            f"CLUSTER_SHAPE_2x1x1] workSpace={w} workSpaceSizeInBytes=33554432 "
            f"beta={int(p.beta)} outOfPlace=0 stream=0X0"
        )


@dataclass(frozen=True)
class Case:
    """A kind of dump, how to read it, and its part of the lines asked for."""

    name: str
    write: Callable[[random.Random, Sequence[Problem], int], Iterator[str]]
    read: Callable[[Sequence[Path]], int]
    part: float = 1.0


CASES = (
    Case("bench lines that repeat", bench_lines, read_bench),
    Case("trace lines", trace_lines, read_trace),
    Case("bench lines, all distinct", distinct_lines, read_bench, part=0.02),
)


def measure(work: Callable[[Sequence[Path]], int], paths: Sequence[Path]) -> tuple[float, float]:
    """Seconds, and MiB of memory that the work needed beyond what its process had before."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    work(paths)
    seconds = time.process_time() - started
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def in_process(work: Callable[[Sequence[Path]], int], paths: Sequence[Path]) -> tuple[float, float]:
    """As `measure`, in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (work, paths))


def write_dumps(case: Case, directory: Path, ranks: int, lines: int) -> list[Path]:
    """One file per rank; ranks run the same steps."""
    paths = []
    for rank in range(ranks):
        rng = random.Random(rank)
        problems = step(random.Random(0), 40, 2000)
        paths.append(directory / f"rank{rank}.log")
        with paths[-1].open("w") as file:
            file.writelines(f"{line}\n" for line in case.write(rng, problems, lines))
    return paths


def compare(case: Case, directory: Path, ranks: int, lines: int, rounds: int) -> None:
    """Write, read in turns, print."""
    if case.part < 1:
        ranks = max(1, int(ranks * case.part))
    paths = write_dumps(case, directory, ranks, lines)
    size = sum(path.stat().st_size for path in paths)
    print(f"{case.name}: {ranks} files, {ranks * lines:,} lines, {size / 2**20:,.0f} MiB")
    samples: dict[str, list[tuple[float, float]]] = {"loop": [], "reader": []}
    for _ in range(rounds):
        for name, work in (("loop", loop), ("reader", case.read)):
            samples[name].append(in_process(work, paths))
    for name, taken in samples.items():
        rates = [ranks * lines / seconds for seconds, _ in taken]
        print(
            f"  {name:<7} {median(rates) / 1e6:7.3f} M lines/s "
            f"({min(rates) / 1e6:.3f}–{max(rates) / 1e6:.3f}), "
            f"peak {median(memory for _, memory in taken):6.1f} MiB"
        )
    ratio = median(r[0] / p[0] for p, r in zip(samples["loop"], samples["reader"], strict=True))
    print(f"  the reader takes {ratio:.2f} times as long as the loop")
    for path in paths:
        path.unlink()


def main(argv: Sequence[str] | None = None) -> None:
    """Compare all cases."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.parse",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ranks", type=int, default=200, help="files; default: 200")
    parser.add_argument("--lines", type=int, default=10_000, help="lines per file")
    parser.add_argument("--rounds", type=int, default=5, help="readings of each; default: 5")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="parse-") as directory:
        for case in CASES:
            compare(case, Path(directory), args.ranks, args.lines, args.rounds)


if __name__ == "__main__":
    main()
