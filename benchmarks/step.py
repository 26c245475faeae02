"""Time our training step against transformers, litgpt and torchtitan: one CPU thread, or one GPU.

Each contestant is a process of its own with the same environment, weights, data and precision.
The rounds are interleaved, one step of each in turn: forward, loss, backward, gradient clipping,
fused AdamW; on a CPU its processor time counts. "GEMM share" is the time of nothing but
the step's matrix products, of exactly the recorded shapes and by the best kernels found, over the
time of the step: 1 is the limit. "of peak" is the model's FLOPs over the time of the step and the
measured peak of torch.mm. Memory is that of the whole process after the first steps, of the CPU or
of the GPU.
Peers that are not installed are left out (`benchmarks/requirements.txt`). Run from the repository:

    python -m benchmarks.step
    python -m benchmarks.step --rounds 15 --hidden-size 768 --bf16
    python -m benchmarks.step --experiment deepseek_v3_tiny
    python -m benchmarks.step --device cuda      # about 1B parameters, bf16, sequences of 4096
    python -m benchmarks.step --only "primus tuned,primus loop" --rounds 31
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks import step_shape
from benchmarks.step_contestants import (
    BEST,
    CONTESTANTS,
    GEMM,
    LOOP,
    OURS,
    TUNED,
    environment,
    seconds_at_peak,
    tune,
)
from benchmarks.step_shape import Unavailable

_PRODUCTS = (GEMM, BEST)
_SIZES = {
    "cpu": step_shape.SMALL,
    "cuda": {
        "num_layers": 16,
        "hidden_size": 2048,
        "ffn_hidden_size": 8192,
        "num_attention_heads": 32,
        "num_query_groups": 8,
        "vocab_size": 32000,
        "seq_length": 4096,
        "micro_batch_size": 1,
    },
}
# All are in memory at once: a GPU holds four of them.
_LEFT_OUT = {"cpu": {LOOP}, "cuda": {LOOP, "transformers eager", "litgpt compiled"}}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the rounds and print the table."""
    args = _arguments(argv)
    os.environ.update(_environment(args))
    with tempfile.TemporaryDirectory() as scratch:
        names = (*_SIZES["cpu"], "bf16", "device", "experiment")
        shape = {name: getattr(args, name) for name in names}
        shape["scratch"] = scratch
        print(_in_a_process(tune, shape), flush=True)
        at_peak = _in_a_process(seconds_at_peak, shape)
        processes: dict[str, _Contestant] = {}
        for name in [OURS, *(name for name in args.only if name != OURS)]:
            contestant = _Contestant(name, shape)
            if contestant.missing:
                print(f"{name}: left out: {contestant.missing}", flush=True)
            else:
                processes[name] = contestant
        try:
            times = _rounds(processes, args.warmup, args.rounds)
            peaks = {name: process.peak() for name, process in processes.items()}
        finally:
            for process in processes.values():
                process.stop()
    _print_table(args, processes, times, peaks, at_peak)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--experiment", help="its model instead of a llama of these sizes")
    parser.add_argument("--device", choices=sorted(_SIZES), default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=2)
    for name in _SIZES["cpu"]:
        sizes = ", ".join(f"{device}: {known[name]}" for device, known in _SIZES.items())
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"default: {sizes}")
    parser.add_argument("--bf16", action="store_true", help="else float32; a GPU always")
    parser.add_argument(
        "--only",
        type=_names,
        help=f"some of: {', '.join(CONTESTANTS)}; default: all but {LOOP!r}, on a GPU fewer",
    )
    parser.add_argument(
        "--plain-malloc",
        action="store_true",
        help="without the settings of malloc that ranks on CPUs start with, for every contestant",
    )
    parser.add_argument("--json", type=Path, help="also write every figure to this file")
    args = parser.parse_args(argv)
    for name, size in _SIZES[args.device].items():
        if getattr(args, name) is None:
            setattr(args, name, size)
    args.bf16 |= args.device != "cpu"
    args.only = args.only or [name for name in CONTESTANTS if name not in _LEFT_OUT[args.device]]
    return args


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in CONTESTANTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown}: known are {', '.join(CONTESTANTS)}")
    return names


def _environment(args: argparse.Namespace) -> dict[str, str]:
    from primus.launch import platform_environment, thread_environment

    environment = thread_environment(1) | {"TOKENIZERS_PARALLELISM": "false"}
    return environment if args.plain_malloc else environment | platform_environment(args.device)


class _Contestant:
    """A process that takes one step whenever it is told to."""

    def __init__(self, name: str, shape: dict[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, shape), daemon=True)
        with _variables(environment(shape, name)):
            self._process.start()
        theirs.close()
        answer = self._pipe.recv()
        self.missing: str = answer if isinstance(answer, str) else ""
        self.about: dict[str, Any] = {} if self.missing else answer

    def step(self) -> tuple[float, float]:
        """Processor seconds of one step, and its loss."""
        answer: tuple[float, float] = self._ask("step")
        return answer

    def forget_peak(self) -> None:
        """Take the peak of memory from now on."""
        self._ask("forget")

    def peak(self) -> float:
        """Most memory of the process, MiB."""
        return float(self._ask("peak"))

    def _ask(self, what: str) -> Any:
        self._pipe.send(what)
        return self._pipe.recv()

    def stop(self) -> None:
        """End the process."""
        self._pipe.send("stop")
        self._process.join(timeout=10)
        self._process.kill()


def _serve(pipe: Connection, name: str, shape: dict[str, Any]) -> None:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        step, about = CONTESTANTS[name](shape)
    except Unavailable as error:
        pipe.send(str(error))
        return
    clock = step_shape.clock(shape)
    pipe.send(about)
    while (what := pipe.recv()) != "stop":
        if what == "step":
            # The loop prints its line.
            with contextlib.redirect_stdout(None):
                started = clock()
                loss = step()
                seconds = clock() - started
            pipe.send((seconds, loss))
        elif what == "forget":
            _forget_peak(shape["device"])
            pipe.send(None)
        else:
            pipe.send(_peak(shape["device"]))


def _forget_peak(device: str) -> None:
    import torch

    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    else:
        # proc(5): 5 resets the peak of the resident set.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak(device: str) -> float:
    import torch

    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


@contextlib.contextmanager
def _variables(variables: dict[str, str]) -> Iterator[None]:
    """Have processes that start inside begin with these."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _in_a_process(run: Callable[[dict[str, Any]], Any], shape: dict[str, Any]) -> Any:
    """What `run` returns, of a process that leaves nothing of it in this one."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run, shape).result()


def _rounds(
    processes: dict[str, _Contestant], warmup: int, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in processes}
    for number in range(warmup + rounds):
        order = list(processes)
        for name in order[number % len(order) :] + order[: number % len(order)]:
            if number == warmup:
                processes[name].forget_peak()
            times[name].append(processes[name].step())
    return times


def _print_table(
    args: argparse.Namespace,
    processes: dict[str, _Contestant],
    times: dict[str, list[tuple[float, float]]],
    peaks: dict[str, float],
    seconds_at_peak: float,
) -> None:
    parameters = processes[OURS].about["parameters"]
    tokens = args.seq_length * args.micro_batch_size
    print(
        f"{parameters:,} parameters, {tokens} tokens a step "
        f"({args.micro_batch_size} x {args.seq_length}), {'bf16' if args.bf16 else 'fp32'}, "
        f"{'one thread' if args.device == 'cpu' else args.device}, median of {args.rounds} "
        "interleaved rounds\n"
    )
    seconds = {name: [t for t, _ in rows[args.warmup :]] for name, rows in times.items()}
    ours = TUNED if TUNED in seconds else OURS
    print(f"| contestant | s/step (min, max) | GEMM share | of peak | {ours} is | MiB | loss |")
    print("| --- | --- | ---: | ---: | ---: | ---: | --- |")
    for name, values in seconds.items():
        spread = f"{statistics.median(values):.3f} ({min(values):.3f}, {max(values):.3f})"
        share = f"{_median_ratio(seconds[BEST], values):.2f}" if BEST in seconds else ""
        faster = f"{_median_ratio(values, seconds[ours]):.3f}x faster"
        known = name not in _PRODUCTS
        loss = f"{times[name][0][1]:.5f}" if known else ""
        of_peak = f"{seconds_at_peak / statistics.median(values):.2f}" if known else ""
        print(
            f"| {name} | {spread} | {share} | {of_peak} | {faster} | {peaks[name]:.0f} | {loss} |"
        )
    if args.json:
        content = {"shape": vars(args) | {"json": str(args.json)}, "seconds": seconds}
        args.json.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")


def _median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over the rounds of the ratio within each round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


if __name__ == "__main__":
    main()
