"""Time our training step on one CPU thread against transformers, eager and compiled.

Each contestant is a process of its own with the same environment, weights, data and precision.
The rounds are interleaved, one step of each in turn, and a step's processor time is counted:
forward, loss, backward, gradient clipping, fused AdamW. "GEMM share" is the time of nothing but
the step's matrix products, of exactly the recorded shapes, over the time of the step: 1 is the
limit. Run from the repository:

    python -m benchmarks.step
    python -m benchmarks.step --rounds 15 --hidden-size 768 --bf16
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.step_contestants import CONTESTANTS

OURS = "primus"
GEMM = "gemm only"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the rounds and print the table."""
    args = _arguments(argv)
    os.environ.update(_environment(args))
    with tempfile.TemporaryDirectory() as scratch:
        shape = {
            name: getattr(args, name)
            for name in (
                *("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads"),
                *("num_query_groups", "vocab_size", "seq_length", "micro_batch_size", "bf16"),
            )
        } | {"scratch": scratch}
        names = [name for name in CONTESTANTS if name not in args.without]
        processes = {name: _Contestant(name, shape) for name in names}
        try:
            times = _rounds(processes, args.warmup, args.rounds)
        finally:
            for process in processes.values():
                process.stop()
    _print_table(args, processes, times)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--num-layers", type=int, default=6)
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--ffn-hidden-size", type=int, default=1408)
    parser.add_argument("--num-attention-heads", type=int, default=8)
    parser.add_argument("--num-query-groups", type=int, default=8)
    parser.add_argument("--vocab-size", type=int, default=7168)
    parser.add_argument("--seq-length", type=int, default=1024)
    parser.add_argument("--micro-batch-size", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--without", nargs="*", default=[], choices=sorted(CONTESTANTS))
    parser.add_argument(
        "--plain-malloc",
        action="store_true",
        help="without the settings of malloc that ranks on CPUs start with, for every contestant",
    )
    parser.add_argument("--json", type=Path, help="also write every figure to this file")
    return parser.parse_args(argv)


def _environment(args: argparse.Namespace) -> dict[str, str]:
    from primus.launch import platform_environment, thread_environment

    environment = thread_environment(1) | {"TOKENIZERS_PARALLELISM": "false"}
    return environment if args.plain_malloc else environment | platform_environment("cpu")


class _Contestant:
    """A process that takes one step whenever it is told to."""

    def __init__(self, name: str, shape: dict[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, shape), daemon=True)
        self._process.start()
        self.about: dict[str, Any] = self._pipe.recv()

    def step(self) -> tuple[float, float]:
        """Processor seconds of one step, and its loss."""
        self._pipe.send("step")
        answer: tuple[float, float] = self._pipe.recv()
        return answer

    def stop(self) -> None:
        """End the process."""
        self._pipe.send("stop")
        self._process.join(timeout=10)
        self._process.kill()


def _serve(pipe: Connection, name: str, shape: dict[str, Any]) -> None:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    step: Callable[[], float]
    step, about = CONTESTANTS[name](shape)
    pipe.send(about)
    while pipe.recv() == "step":
        started = time.process_time()
        loss = step()
        pipe.send((time.process_time() - started, loss))


def _rounds(
    processes: dict[str, _Contestant], warmup: int, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in processes}
    for number in range(warmup + rounds):
        order = list(processes)
        for name in order[number % len(order) :] + order[: number % len(order)]:
            times[name].append(processes[name].step())
    return times


def _print_table(
    args: argparse.Namespace,
    processes: dict[str, _Contestant],
    times: dict[str, list[tuple[float, float]]],
) -> None:
    parameters = processes[OURS].about["parameters"]
    tokens = args.seq_length * args.micro_batch_size
    print(
        f"{parameters:,} parameters, {tokens} tokens a step, {'bf16' if args.bf16 else 'fp32'}, "
        f"one thread, median of {args.rounds} interleaved rounds"
    )
    seconds = {name: [t for t, _ in rows[args.warmup :]] for name, rows in times.items()}
    print(f"{'':24} {'s/step':>8} {'min':>7} {'max':>7} {'GEMM share':>11} {'ours is':>9}  loss")
    for name, values in seconds.items():
        share = _median_ratio(seconds[GEMM], values)
        faster = _median_ratio(values, seconds[OURS])
        loss = "" if name == GEMM else f"{times[name][0][1]:.5f}"
        print(
            f"{name:24} {statistics.median(values):8.3f} {min(values):7.3f} {max(values):7.3f} "
            f"{share:11.2f} {faster:8.2f}x  {loss}"
        )
    if args.json:
        content = {"shape": vars(args) | {"json": str(args.json)}, "seconds": seconds}
        args.json.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")


def _median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over the rounds of the ratio within each round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


if __name__ == "__main__":
    main()
