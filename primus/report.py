"""Write the report of a finished run as one self-contained page, and its figures as JSON.

With --check alone: read the raw files again, and fail where a headline figure of the report does
not follow from them.

Examples:
    python -m primus.report --settings report.json --train output/runs/mine/train.json \\
        --samples samples/manifest.json --data data/manifest.json \\
        --tokenizer tokenizer/manifest.json --output output/runs/mine/report.html
    python -m primus.report --check output/runs/mine/report.json
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from primus.artifacts.run import TrainManifest
from primus.artifacts.timing import stage_time
from primus.command_line import Command
from primus.config.frozen import StageSettings, add_settings_arguments
from primus.errors import ArtifactError, run_main


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the stage."""
    parser = command_parser()
    alone, others = _check_parser().parse_known_args(argv)
    if alone.check is not None:
        if others:
            parser.error(f"--check: stands alone, without {' '.join(others)}")
        _check(alone.check)
        return
    args = parser.parse_args(argv)
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
    parser.add_argument(
        "--check", type=Path, metavar="REPORT.JSON", help="alone: check this report"
    )
    return parser


def command_parser() -> Command:
    """The arguments of the stage."""
    parser = Command("primus.report", __doc__, parents=[_check_parser()])
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
    add("--ab", type=Path, help="ab.json")
    add("--stage-settings", type=Path, nargs="*", help="frozen settings of the other stages")
    add("--output", type=Path, required=True, help="report.html; report.json goes beside it")
    add("--loss-png", type=Path, help="also write the loss curve as a picture")
    add("--hash-gib", type=float, default=math.inf, help="hash at most this much of checkpoints")
    return parser


if __name__ == "__main__":
    run_main(main)
