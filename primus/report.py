"""Stage: a run and all that led to it → report.html and report.json."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from primus.artifacts.run import TrainManifest
from primus.artifacts.timing import stage_time
from primus.config.frozen import StageSettings, add_settings_arguments
from primus.errors import ArtifactError, run_main

EXAMPLE = """example:
  python -m primus.report --check output/runs/llama3_8B_tiny/<key>/report.json
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the stage."""
    if (checked := _check_parser().parse_known_args(argv)[0].check) is not None:
        _check(checked)
        return
    args = _parser().parse_args(argv)
    from primus.dataset.order import sample_order
    from primus.reports.build import build_report
    from primus.reports.inputs import Paths

    with stage_time("report", args.output):
        settings = StageSettings.load(args.settings, "report", args.options)
        train = TrainManifest.load(args.train)
        if (train.experiment, train.key) != (settings.experiment, settings.key):
            raise ArtifactError(
                f"{args.train}: is of {train.experiment} {train.key}, "
                f"the settings are of {settings.experiment} {settings.key}"
            )
        report = build_report(
            Paths.of(args),
            args.output,
            hash_gib=args.hash_gib,
            loss_png=args.loss_png,
            order=sample_order,
        )
    print(f"{report.summary}\nreport: {args.output}", flush=True)


def _check(path: Path) -> None:
    from primus.reports.build import check_report

    differences = check_report(path)
    if differences:
        raise ArtifactError("\n".join(f"{path}: {difference}" for difference in differences))
    print(f"{path}: every headline figure follows from the inputs")


def _check_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--check", type=Path, metavar="REPORT.JSON")
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m primus.report",
        description="Write the report of a finished run as one self-contained page.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_check_parser()],
    )
    add_settings_arguments(parser)
    add = parser.add_argument
    add("--train", type=Path, required=True, help="train.json; the run's other files lie beside it")
    add("--samples", type=Path, required=True, help="manifest of the samples")
    add("--data", type=Path, required=True, help="manifest of the token files")
    add("--tokenizer", type=Path, required=True, help="manifest of the tokenizer")
    add("--shapes", type=Path, help="shapes.jsonl")
    add("--tuned", type=Path, help="tuned.jsonl")
    add("--export", type=Path, help="manifest of the Hugging Face directory")
    add("--evaluation", type=Path, help="eval.json")
    add("--stage-settings", type=Path, nargs="*", help="frozen settings of the other stages")
    add("--output", type=Path, required=True, help="report.html; report.json goes beside it")
    add("--loss-png", type=Path, help="also write the loss curve as a picture")
    add("--hash-gib", type=float, default=math.inf, help="hash at most this much of checkpoints")
    return parser


if __name__ == "__main__":
    run_main(main)
