"""Preflight: check the nodes on which an experiment would train, and train nothing.

The same as the train stage does before each of its starts. Broken nodes are named, and the exit
status is then 1; what was measured is written in any case. Example:

    python -m primus.preflight --settings train.json --output output/preflight/mine/preflight.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from primus.artifacts.timing import stage_time
from primus.config.frozen import add_settings_arguments, load_settings
from primus.errors import run_main
from primus.preflight_step import check, require_sound, show


def main(argv: Sequence[str] | None = None) -> None:
    """Check the nodes of this job, or this machine.

    Raises:
        NodeError: nodes are broken.
    """
    parser = argparse.ArgumentParser(
        prog="python -m primus.preflight",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_settings_arguments(parser)
    parser.add_argument("--run", type=Path, help="the run's directory, where there is one")
    parser.add_argument("--output", type=Path, required=True, help="for what was measured")
    args = parser.parse_args(argv)
    settings = load_settings(args, "train")
    directory = args.output.parent / "preflight"
    with stage_time("preflight", args.output):
        found = check(settings, args.settings, directory, args.run or args.output.parent)
        found.save(args.output)
        show(found)
        require_sound(found)
    print(f"nodes without a fault: {len(found.hosts)}; measured: {args.output}", flush=True)


if __name__ == "__main__":
    run_main(main)
