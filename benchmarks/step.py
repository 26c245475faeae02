"""Time our training step against transformers, litgpt and torchtitan: one CPU thread, or one GPU.

Each contestant is a process of its own with the same environment, weights, data and precision.
The rounds are interleaved, one step of each in turn: forward, loss, backward, gradient clipping,
fused AdamW; on a CPU its processor time counts. On a GPU a turn is a few steps, whose first begins
and whose last ends with an idle device; what compiles does so before, all contestants at once.
"GEMM share" is the time of nothing but the step's matrix products, of exactly the recorded shapes
and by the best kernels found, over the time of the step: 1 is the limit. "of peak" is the model's
FLOPs (`primus.config.flops`) over the time of the step and the measured peak of torch.mm. Memory is
that of the whole process after the first steps; on a GPU what torch has allocated there. "lean" is
ours with attention's scores computed twice instead of kept.
A contestant that fails is left out, and the status is 1; figures come as they are measured.
On a CPU peers that are not installed are left out (`benchmarks/requirements.txt`); on a GPU that
ends it at once. Run from the repository:

    python -m benchmarks.step
    python -m benchmarks.step --rounds 15 --hidden-size 768 --bf16
    python -m benchmarks.step --experiment deepseek_v3_tiny
    python -m benchmarks.step --device cuda      # about 0.9B parameters, bf16, sequences of 4096
    python -m benchmarks.step --device cuda --only "primus,primus tuned,gemm only,best gemm only"
    python -m benchmarks.step --only "primus tuned,primus loop" --rounds 31
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import step_shape
from benchmarks.step_check import look
from benchmarks.step_contestants import (
    BEST,
    CONTESTANTS,
    GEMM,
    LEAN,
    LOOP,
    OURS,
    TUNED,
    at_peak,
    tune,
)
from benchmarks.step_process import Contestant, Failed, in_a_process
from benchmarks.step_shape import Unavailable

_PRODUCTS = (GEMM, BEST)
_NEED_TUNING = (TUNED, LEAN, LOOP, *_PRODUCTS)
_SIZES = {
    "cpu": step_shape.SMALL,
    # Three layers of llama3_8B: the more smaller ones, the more of a step is the host's.
    "cuda": {
        "num_layers": 3,
        "hidden_size": 4096,
        "ffn_hidden_size": 14336,
        "num_attention_heads": 32,
        "num_query_groups": 8,
        "vocab_size": 32000,
        "seq_length": 4096,
        "micro_batch_size": 1,
    },
}
# All are in memory at once: five that train take about 110 GB of a GPU.
_LEFT_OUT = {"cpu": {LOOP}, "cuda": {LEAN, LOOP, "transformers eager"}}
_ROUNDS = {"cpu": 9, "cuda": 15}
# Before those: what has compiled may compile once more, and memory settles.
_WARMUP = {"cpu": 2, "cuda": 3}
# Of a turn. Processes that share a GPU are switched between turns, and find its caches cold.
_STEPS = {"cpu": 1, "cuda": 4}
# After so many seconds a contestant is given up, and no round begins.
_SECONDS = {"cpu": math.inf, "cuda": 480.0}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the rounds and print the table."""
    args = _arguments(argv)
    os.environ.update(_environment(args))
    with tempfile.TemporaryDirectory() as scratch:
        names = (*_SIZES["cpu"], "bf16", "device", "experiment")
        shape = {name: getattr(args, name) for name in names}
        shape["scratch"] = scratch
        race = Race(args, shape)
        if args.device != "cpu":
            race.look()
        race.tune()
        race.measure_peak()
        race.run()
    race.print_table()
    if race.failed:
        raise SystemExit(1)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--experiment", help="its model instead of a llama of these sizes")
    parser.add_argument("--device", choices=sorted(_SIZES), default="cpu")
    parser.add_argument("--rounds", type=int, help=f"default: {_per_device(_ROUNDS)}")
    parser.add_argument("--warmup", type=int, help=f"default: {_per_device(_WARMUP)}")
    parser.add_argument("--steps", type=int, help=f"of a turn; default: {_per_device(_STEPS)}")
    parser.add_argument(
        "--seconds", type=float, help=f"for all of it; default: {_per_device(_SECONDS)}"
    )
    for name in _SIZES["cpu"]:
        known = _per_device({device: sizes[name] for device, sizes in _SIZES.items()})
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"default: {known}")
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
    defaults = _SIZES[args.device] | {
        "rounds": _ROUNDS[args.device],
        "warmup": _WARMUP[args.device],
        "steps": _STEPS[args.device],
        "seconds": _SECONDS[args.device],
    }
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.bf16 |= args.device != "cpu"
    args.only = args.only or [name for name in CONTESTANTS if name not in _LEFT_OUT[args.device]]
    return args


def _per_device(values: dict[str, Any]) -> str:
    return ", ".join(f"{device}: {value}" for device, value in values.items())


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in CONTESTANTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown}: known are {', '.join(CONTESTANTS)}")
    return names


def _environment(args: argparse.Namespace) -> dict[str, str]:
    from primus.launch import platform_environment, thread_environment

    environment = thread_environment(1) | {"TOKENIZERS_PARALLELISM": "false"}
    if args.device != "cpu":
        # Compiling is not timed, and takes most of the time of all of it.
        threads = max(1, (os.cpu_count() or 1) // 4)
        environment["TORCHINDUCTOR_COMPILE_THREADS"] = str(threads)
    return environment if args.plain_malloc else environment | platform_environment(args.device)


class Race:
    """The contestants that take part, and what was measured of them.

    Attributes:
        failed: those that are out, or what could not be measured, and why.
    """

    def __init__(self, args: argparse.Namespace, shape: dict[str, Any]) -> None:
        self._args, self._shape = args, shape
        self._deadline = time.monotonic() + args.seconds
        self._names = [OURS, *(name for name in args.only if name != OURS)]
        self._processes: dict[str, Contestant] = {}
        self._times: dict[str, list[tuple[float, float]]] = {}
        self._peaks: dict[str, float] = {}
        self._served: dict[str, Any] = {}
        self._flops, self._peak_flops, self._parameters = math.nan, math.nan, 0
        self.failed: dict[str, str] = {}

    def look(self) -> None:
        """See that everything is there, before anything long begins.

        Raises:
            SystemExit: something is missing; status 2.
        """
        found, missing = in_a_process(look, self._shape, self._names)
        _say(*found, *(f"error: {line}" for line in missing))
        if missing:
            raise SystemExit(2)

    def tune(self) -> None:
        """Record and tune our products; on a GPU that cannot, those that need it are left out."""
        needs = [name for name in self._names if name in _NEED_TUNING]
        if not needs:
            return
        try:
            _say(in_a_process(tune, self._shape))
        except Exception as error:
            if self._args.device == "cpu":
                raise
            for name in needs:
                self._out(name, f"nothing is tuned: {_line(error)}")

    def measure_peak(self) -> None:
        """Measure torch.mm, with nothing else on the device."""
        try:
            self._flops, self._peak_flops = in_a_process(at_peak, self._shape)
        except Exception as error:
            if self._args.device == "cpu":
                raise
            self._out("the peak of torch.mm", _line(error))

    def run(self) -> None:
        """Start all, have them take their turns, and end all."""
        try:
            self._start_all()
            self._take_turns()
        finally:
            for process in self._processes.values():
                process.stop()

    def _start_all(self) -> None:
        """Ours first, whose weights the others read; on a GPU the others together."""
        self._start([OURS])
        if OURS in self._processes:
            self._parameters = self._processes[OURS].about["parameters"]
        others = [name for name in self._names if name != OURS]
        for group in [others] if self._args.device != "cpu" else [[name] for name in others]:
            self._start(group)

    def _start(self, names: Sequence[str]) -> None:
        for name in names:
            self._processes[name] = Contestant(name, self._shape, self._deadline)
        for name in names:
            try:
                self._processes[name].wait()
            except Unavailable as error:
                _say(f"{name}: left out: {error}")
                self._processes.pop(name).stop()
            except Failed as error:
                self._out(name, str(error))

    def _take_turns(self) -> None:
        """Warm up, then the rounds; a contestant that fails is out."""
        args = self._args
        if args.device != "cpu":
            self._warm_up_together()
        for number in range(args.warmup + args.rounds):
            late = time.monotonic() > self._deadline
            if late and number >= args.warmup:
                _say(f"{args.seconds:g} s are over after {number - args.warmup} rounds")
                break
            order = list(self._processes)
            if not order:
                break
            for name in order[number % len(order) :] + order[: number % len(order)]:
                self._turn(name, forget=number == args.warmup, steps=args.steps)
            if number >= args.warmup and args.device != "cpu":
                _say(f"round {number - args.warmup + 1}: {self._last_turns()}")
                self._write()
        for name in list(self._processes):
            self._ask_at_the_end(name)

    def _warm_up_together(self) -> None:
        started = time.monotonic()
        for process in self._processes.values():
            process.begin(1)
        for name in list(self._processes):
            try:
                _, loss = self._processes[name].end()
            except Failed as error:
                self._out(name, str(error))
                continue
            self._times[name] = [(math.nan, loss)]
            shown = "" if name in _PRODUCTS else f", loss {loss:.5f}"
            _say(f"{name}: ready {time.monotonic() - started:.0f} s after the start{shown}")

    def _turn(self, name: str, *, forget: bool, steps: int) -> None:
        process = self._processes[name]
        try:
            if forget:
                process.ask("forget")
            process.begin(steps)
            self._times.setdefault(name, []).append(process.end())
        except (Failed, OSError) as error:
            self._out(name, str(error))

    def _ask_at_the_end(self, name: str) -> None:
        try:
            self._peaks[name] = self._processes[name].ask("peak")
            self._served[name] = self._processes[name].ask("served")
        except (Failed, OSError) as error:
            self._out(name, str(error))

    def _out(self, name: str, why: str) -> None:
        """It takes no part any longer."""
        _say(f"{name}: failed: {why}")
        self.failed[name] = why
        self._names = [one for one in self._names if one != name]
        self._times.pop(name, None)
        if name in self._processes:
            self._processes.pop(name).stop()

    def _seconds(self) -> dict[str, list[float]]:
        """Of the rounds that count; each contestant has one of each."""
        before = self._args.warmup + (self._args.device != "cpu")
        return {name: [t for t, _ in rows[before:]] for name, rows in self._times.items()}

    def _last_turns(self) -> str:
        return ", ".join(f"{name} {rows[-1]:.4f}" for name, rows in self._seconds().items())

    def print_table(self) -> None:
        """What came of it."""
        args, seconds = self._args, self._seconds()
        rounds = min(map(len, seconds.values()), default=0)
        if rounds == 0:
            _say("nothing was timed")
            return
        tokens = args.seq_length * args.micro_batch_size
        _say(
            f"{self._parameters:,} parameters, {tokens} tokens a step "
            f"({args.micro_batch_size} x {args.seq_length}), {'bf16' if args.bf16 else 'fp32'}, "
            f"{'one thread' if args.device == 'cpu' else args.device}, median of {rounds} "
            "interleaved rounds",
            f"{self._flops / 1e12:.4g} TFLOP a step (6 per weight of a linear layer and token, and "
            "the causal half of the scores; primus.config.flops), torch.mm reaches "
            f"{self._peak_flops / 1e12:.4g} TFLOP/s",
            "",
        )
        ours = next((name for name in (TUNED, OURS) if name in seconds), next(iter(seconds)))
        _say(f"| contestant | s/step (min, max) | GEMM share | of peak | {ours} is | MiB | loss |")
        _say("| --- | --- | ---: | ---: | ---: | ---: | --- |")
        for name, values in seconds.items():
            self._print_row(name, values, seconds.get(BEST), seconds[ours])
        for name, served in self._served.items():
            if served is not None:
                told = ", ".join(f"{what} {n}" for what, n in served.items() if n)
                _say(f"{name}: products by the tuned result: {told or 'none'}")
        self._write()

    def _print_row(
        self, name: str, values: list[float], best: list[float] | None, ours: list[float]
    ) -> None:
        spread = f"{statistics.median(values):.4f} ({min(values):.4f}, {max(values):.4f})"
        share = f"{_median_ratio(best, values):.2f}" if best else ""
        faster = f"{_median_ratio(values, ours):.3f}x faster"
        known = name not in _PRODUCTS
        loss = f"{self._times[name][0][1]:.5f}" if known else ""
        at_peak = self._flops / self._peak_flops
        of_peak = f"{at_peak / statistics.median(values):.3f}" if known else ""
        memory = f"{self._peaks.get(name, math.nan):.0f}"
        _say(f"| {name} | {spread} | {share} | {of_peak} | {faster} | {memory} | {loss} |")

    def _write(self) -> None:
        if self._args.json is None:
            return
        content = {
            "shape": vars(self._args) | {"json": str(self._args.json)},
            "seconds": self._seconds(),
            "losses": {name: rows[0][1] for name, rows in self._times.items()},
            "peak_mib": self._peaks,
            "served": self._served,
            "flops": self._flops,
            "peak_flops": self._peak_flops,
            "failed": self.failed,
        }
        text = json.dumps(content, indent=2, default=str) + "\n"
        self._args.json.write_text(text, encoding="utf-8")


def _say(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over the rounds of the ratio within each round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


if __name__ == "__main__":
    main()
