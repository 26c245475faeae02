"""Causal attention on one CPU thread: blocks that keep their scores, over torch's own kernel.

    python -m benchmarks.attention --rounds 9

Forward and backward of random operands in processor time, both in turns, medians over the rounds;
"error" is that of the output and the worst gradient against float64, relative to their norm. The
trainer takes the blocks where `primus.trainer.attention_blocks.serves` says so.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from primus.launch import platform_environment, thread_environment

if TYPE_CHECKING:
    from torch import Tensor

    Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

# b, heads, groups, s, head
SHAPES = [
    (4, 8, 8, 256, 64),
    (1, 8, 8, 1024, 64),
    (1, 8, 2, 1024, 64),
    (1, 8, 8, 2048, 64),
    (2, 8, 2, 512, 16),
]
_STARTED = "PRIMUS_BENCHMARK_STARTED"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args(argv)
    if _STARTED not in os.environ:
        # malloc reads its settings when a process starts.
        variables = thread_environment(1) | platform_environment("cpu") | {_STARTED: "1"}
        arguments = [sys.executable, "-m", "benchmarks.attention", "--rounds", str(args.rounds)]
        os.execvpe(sys.executable, arguments, os.environ | variables)  # noqa: S606
    import torch

    torch.set_num_threads(1)
    print("| type | b, heads, groups, s, head | torch ms | blocks ms | torch / blocks | errors |")
    print("| --- | --- | ---: | ---: | ---: | --- |")
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES:
            print(_row(dtype, shape, args.rounds), flush=True)


def _row(dtype: object, shape: tuple[int, ...], rounds: int) -> str:
    import torch
    from torch.nn import functional as F

    from primus.trainer.attention_blocks import block_attention

    b, heads, groups, s, head = shape
    q, k, v = (
        torch.randn(b, n, s, head).to(dtype).requires_grad_()  # type: ignore[call-overload]
        for n in (heads, groups, groups)
    )
    grad = torch.randn(b, heads, s, head).to(dtype)  # type: ignore[call-overload]

    def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads > groups)

    def blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return block_attention(q, k, v, head**-0.5)

    def run(attention: Attention, inputs: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
        out = attention(*inputs)
        return [out.detach(), *torch.autograd.grad(out, inputs, grad)]

    exact = run(fused, [x.detach().double().requires_grad_() for x in (q, k, v)], grad.double())
    times: dict[Attention, list[float]] = {fused: [], blocks: []}
    errors = []
    for attention in times:
        found = run(attention, (q, k, v), grad)
        errors.append(
            max(float((a - e).norm() / e.norm()) for a, e in zip(found, exact, strict=True))
        )
    for _ in range(rounds):
        for attention, seconds in times.items():
            started = time.process_time()
            run(attention, (q, k, v), grad)
            seconds.append(time.process_time() - started)
    middle = [1e3 * statistics.median(seconds) for seconds in times.values()]
    ratio = statistics.median(a / c for a, c in zip(times[fused], times[blocks], strict=True))
    name = str(dtype).removeprefix("torch.")
    return (
        f"| {name} | {', '.join(map(str, shape))} | {middle[0]:.1f} | {middle[1]:.1f} | "
        f"{ratio:.2f} | {errors[0]:.1e}, {errors[1]:.1e} |"
    )


if __name__ == "__main__":
    main()
