"""Preflight: check the nodes on which an experiment would train, and train nothing.

The same as the train stage does before each of its starts. Broken nodes are named, and the exit
status is then 1; what was measured is written in any case.

Examples:
    snakemake preflight_llama3_8B_tiny
    python -m primus.preflight --settings train.json --output output/preflight/mine/preflight.json
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from primus.artifacts.timing import stage_time
from primus.command_line import Command
from primus.config.frozen import add_settings_arguments, load_settings
from primus.errors import run_main
from primus.preflight_step import check, require_sound, show


def main(argv: Sequence[str] | None = None) -> None:
    """Check the nodes of this job, or this machine.

    Raises:
        NodeError: nodes are broken.
    """
    args = command_parser().parse_args(argv)
    settings = load_settings(args, "train")
    directory = args.output.parent / "preflight"
    with stage_time("preflight", args.output):
        found = check(settings, args.settings, directory, args.run or args.output.parent)
        found.save(args.output)
        show(found)
        require_sound(found)
    print(f"nodes without a fault: {len(found.hosts)}; measured: {args.output}", flush=True)


def command_parser() -> Command:
    """The arguments of the stage."""
    parser = Command("primus.preflight", __doc__)
    add_settings_arguments(parser)
    parser.add_argument("--run", type=Path, help="the run's directory, where there is one")
    parser.add_argument("--output", type=Path, required=True, help="for what was measured")
    return parser


if __name__ == "__main__":
    run_main(main)
