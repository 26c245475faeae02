"""Dump the GEMM shapes of training: recorded from real steps, or traced without memory or device.

Calls are counted per micro-batch, on one tensor-parallel rank, over all pipeline stages.

Examples:
    python -m primus.shapes --settings shapes.json --output shapes.jsonl
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from primus.artifacts.timing import stage_time
from primus.command_line import Command
from primus.config.frozen import StageSettings, add_settings_arguments, load_settings
from primus.config.layout import model_parallel_ranks
from primus.container.run import enter
from primus.errors import TrainingError, run_main
from primus.launch import Ranks, run_ranks, thread_environment, trainer_imports
from primus.quick_imports import quick_imports


def main(argv: Sequence[str] | None = None) -> None:
    """Write shapes.jsonl."""
    args = command_parser().parse_args(argv)
    settings = load_settings(args, "shapes")
    if "RANK" in os.environ:
        _dump(settings, args.output)
        return
    if settings.gemm_tuning.shapes == "record":
        enter(settings, argv if argv is not None else sys.argv[1:])
    with stage_time("shapes", args.output):
        ranks = model_parallel_ranks(settings)
        if settings.gemm_tuning.shapes == "record" and settings.platform != "cpu":
            _dump_by_library(settings, args.output)
        elif settings.gemm_tuning.shapes == "trace" or ranks == 1:
            _dump(settings, args.output)
        else:
            _start(settings, ranks, list(argv if argv is not None else sys.argv[1:]))


def command_parser() -> Command:
    """The arguments of the stage."""
    parser = Command("primus.shapes", __doc__)
    add_settings_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, help="shapes.jsonl")
    return parser


def _start(settings: StageSettings, ranks: int, arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as logs:
        status = run_ranks(
            Ranks(
                module="primus.shapes",
                arguments=arguments,
                nproc_per_node=ranks,
                nodes=1,
                environment=thread_environment(1) | settings.env.as_dict(),
                log_directory=Path(logs),
                imports=trainer_imports(settings.platform),
            )
        )
    if status != 0:
        raise TrainingError(f"the ranks that record shapes ended with exit status {status}")


def _dump(settings: StageSettings, output: Path) -> None:
    with quick_imports():
        from primus.shapes_dump import dump

    dump(settings, output)


def _dump_by_library(settings: StageSettings, output: Path) -> None:
    from primus.gemm.library import library_dump
    from primus.shapes_library import dump_by_library

    dump_by_library(settings, output, library_dump(settings.platform))


if __name__ == "__main__":
    run_main(main)
