"""Runs side by side: settings, losses, throughput, environment, and what the noise lets one say.

A RUN is a directory, its train.json, an experiment (its newest run), or experiment/key. The first
one is what the others are held against. Nothing is written without --output.

With --check alone: read the files of the runs again, and fail where a figure of the comparison does
not follow from them.

Examples:
    python -m primus.compare llama3_8B_tiny llama3_8B_tiny/0123456789ab
    python -m primus.compare llama3_8B_tiny deepseek_v2_lite_tiny --output ab.html
    python -m primus.compare --check ab.json
    snakemake compare --config runs=llama3_8B_tiny,deepseek_v2_lite_tiny
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from primus.command_line import Command
from primus.errors import ArtifactError, UserError, run_main


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print, and write where asked."""
    parser = command_parser()
    args = parser.parse_args(argv)
    if args.check is not None:
        if args.run or args.output or args.json:
            parser.error("--check: stands alone, without runs, --output and --json")
        _check(args.check)
        return
    if args.output is not None and args.output.suffix == ".json":
        fix = f"write {args.output.with_suffix('.html')}; the JSON file goes beside it"
        raise UserError(f"--output = {args.output}: is to be the page. Fix: {fix}")
    from primus.reports.comparison.find import find_runs

    found = find_runs(args.run)
    from primus.reports.comparison import build, table

    runs = build.read_runs(found)
    comparison = build.compare(runs)
    if args.output is not None:
        build.write(comparison, runs, args.output)
    if args.json:
        head = {"kind": comparison.kind, "schema_version": comparison.schema_version}
        print(json.dumps(head | comparison.model_dump(mode="json"), indent=2, sort_keys=True))
        return
    print("\n".join(table.lines(comparison)))
    if args.output is not None:
        print(f"\ncomparison: {args.output}", flush=True)


def _check(path: Path) -> None:
    from primus.reports.comparison.check import check_comparison

    if differences := check_comparison(path):
        raise ArtifactError("\n".join(f"{path}: {difference}" for difference in differences))
    print(f"{path}: every figure follows from the runs")


def command_parser() -> Command:
    """The arguments of the command."""
    parser = Command("primus.compare", __doc__)
    add = parser.add_argument
    add("run", nargs="*", metavar="RUN", help="directory, train.json, experiment, experiment/key")
    add("--output", type=Path, metavar="HTML", help="write a page, and a JSON file beside it")
    add("--json", action="store_true", help="print as JSON")
    add("--check", type=Path, metavar="COMPARISON.JSON", help="alone: check this comparison")
    return parser


if __name__ == "__main__":
    run_main(main)
