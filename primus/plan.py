"""What a run will take before it takes it: parameters, memory, FLOPs, time, disk.

Numbers of parameters are exact; memory is counted tensor by tensor and has a stated reserve; the
time is an estimate from the hardware's measured GEMM peak. docs/plan.md has the formulae. A layout
that cannot fit is an error that names one that does.

Examples:
    python -m primus.plan llama3_70B --hardware h200 --config nodes=2
    python -m primus.plan llama3_8B --efficiency 0.45 --json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

from primus.command_line import Command
from primus.config.arguments import add_config_argument, overrides
from primus.config.estimate import EFFICIENCY_DENSE, EFFICIENCY_EXPERTS
from primus.config.load import load
from primus.config.schema.keys import Stage
from primus.config.summary import amount, billions, duration, summary
from primus.errors import run_main


def main(argv: Sequence[str] | None = None) -> None:
    """Print the plan."""
    args = command_parser().parse_args(argv)
    given = overrides(args.config)
    if args.hardware is not None:
        given["hardware"] = args.hardware
    # Text need not be there to plan; without a device's memory this machine's is compared.
    stages: tuple[Stage, ...] = ("train",)
    plan = summary(load(args.experiment, given, stages=stages).settings, args.efficiency)
    if args.json:
        print(json.dumps(plan, indent=2))
        return
    rows = list(_rows(plan))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}".rstrip())


def command_parser() -> Command:
    """The arguments of the command."""
    parser = Command("primus.plan", __doc__)
    parser.add_argument("experiment", help="name of a file under configs/")
    parser.add_argument("--hardware", help="name under configs/hardware, instead of its own")
    parser.add_argument(
        "--efficiency",
        type=_share,
        help="share of the measured peak that a step reaches (default: "
        f"{EFFICIENCY_DENSE}, with experts {EFFICIENCY_EXPERTS})",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_config_argument(parser)
    return parser


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0 and at most 1")
    return value


def _rows(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    counted, share, gib = plan["parameters"], plan["layout"], plan["memory_per_rank_gib"]
    yield "parameters", f"{counted['total']:,}" + _matches(counted["published"])
    for part, size in counted["by_part"].items():
        yield f"  {part}", f"{size:,}"
    if counted["active"] != counted["total"]:
        yield "  active per token", f"{counted['active']:,}"
    if counted["multi_token_prediction"]:
        yield "  multi-token prediction", f"{counted['multi_token_prediction']:,} besides"
    yield "layout", f"{share['ranks']} ranks on {share['nodes']} nodes of {plan['hardware']}"
    yield "", ", ".join(f"{short} {share[name]}" for short, name in _SHORT.items())
    if share["use_torch_fsdp2"]:
        yield "", "weights, gradients and optimizer sharded over DP (use_torch_fsdp2)"
    layers = ", ".join(str(number) for number in share["layers_per_stage"])
    yield "  layers per stage", layers
    yield "memory per rank, GiB", f"{gib['total']:.4g}" + _of(plan["device_memory_gib"])
    for part, size in gib.items():
        if part != "total":
            yield f"  {part}", f"{size:.3g}"
    if share["pipeline_model_parallel_size"] > 1:
        yield "  fullest stage", str(plan["memory_fullest_stage"])
    yield "FLOPs per token", f"{plan['flops_per_token']:.4g}"
    yield "tokens", f"{plan['tokens_per_step']:,} a step, {billions(plan['tokens'])} in all"
    yield from _time_rows(plan["time"])
    yield "checkpoint", amount(plan["checkpoint_bytes"])


_SHORT = {
    "TP": "tensor_model_parallel_size",
    "PP": "pipeline_model_parallel_size",
    "VPP": "virtual_pipeline_model_parallel_size",
    "CP": "context_parallel_size",
    "EP": "expert_model_parallel_size",
    "expert TP": "expert_tensor_parallel_size",
    "DP": "data_parallel_size",
    "expert DP": "expert_data_parallel_size",
    "micro batches": "micro_batches",
}


def _time_rows(time: dict[str, float] | None) -> Iterator[tuple[str, str]]:
    if time is None:
        yield "time", "not known: the hardware has no measured peak_tflops"
        return
    yield "step", duration(time["seconds_per_step"])
    yield (
        "  assumed",
        f"{time['efficiency']:.0%} of the measured {time['peak_tflops']:g} TFLOP/s, which is to "
        "cover communication",
    )
    yield "  pipeline bubble", f"{time['bubble']:.1%}"
    yield "  recomputation", f"{time['recomputed']:.1%} more FLOPs"
    yield "  tokens per second", f"{time['tokens_per_second']:,.0f}"
    yield "  model TFLOP/s per rank", f"{time['tflops_per_rank']:.0f}"
    yield "GPU-hours", f"{time['gpu_hours']:,.0f}, without validation and checkpoints"


def _matches(published: int | None) -> str:
    return "" if published is None else ", as published"


def _of(limit: float | None) -> str:
    return "" if limit is None else f" of {limit:g}"


if __name__ == "__main__":
    run_main(main)
