"""The points of a sweep: how each came out, which is best, and whether that is more than noise.

NAME is a file of configs/sweeps. Reads what is there: points that have not been trained, or not to
their end, are named. `snakemake sweep_NAME` trains them all and makes the same page.

Examples:
    python -m primus.sweep llama3_8B_tiny_lr
    python -m primus.sweep llama3_8B_tiny_lr --json --config log_interval=1
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from primus.command_line import Command
from primus.config.arguments import add_config_argument, overrides
from primus.config.pipeline import Pipeline
from primus.errors import UserError, run_main

_DIGEST = re.compile(r"[0-9a-f]{12}")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the points, print, and write the page."""
    args = command_parser().parse_args(argv)
    if args.output is not None and args.output.suffix == ".json":
        fix = f"write {args.output.with_suffix('.html')}; the JSON file goes beside it"
        raise UserError(f"--output = {args.output}: is to be the page. Fix: {fix}")
    pipeline = Pipeline(overrides(args.config))
    planned = pipeline.sweep(args.name)
    if args.output is not None and _DIGEST.fullmatch(args.output.stem):
        pipeline.swept(args.name, args.output.stem)
    from primus.reports.sweep import build, table
    from primus.reports.sweep.read import read_points

    manifest, ordered = build.report_on(planned, read_points(planned))
    page = Path(planned.page)
    partial = page.with_suffix(".partial.html")
    complete = all(point.finished for point in manifest.points)
    output = args.output or (page if complete else partial)
    build.write(manifest, ordered, output)
    if complete and output == page:
        for stale in (partial, partial.with_suffix(".json")):
            stale.unlink(missing_ok=True)
    if args.json:
        head = {"kind": manifest.kind, "schema_version": manifest.schema_version}
        print(json.dumps(head | manifest.model_dump(mode="json"), indent=2, sort_keys=True))
        return
    print("\n".join(table.lines(manifest)))
    print(f"\nsweep: {output}", flush=True)


def command_parser() -> Command:
    """The arguments of the command."""
    parser = Command("primus.sweep", __doc__)
    add = parser.add_argument
    add("name", metavar="NAME", help="of the file under configs/sweeps")
    add("--output", type=Path, metavar="HTML", help="the page; a JSON file goes beside it")
    add("--json", action="store_true", help="print as JSON")
    add_config_argument(parser)
    return parser


if __name__ == "__main__":
    run_main(main)
