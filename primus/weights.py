"""Fetch and fingerprint the Hugging Face model from which a run starts.

A directory is read in place; a model of the hub is downloaded beside the manifest.

Examples:
    python -m primus.weights --settings weights.json --output output/weights/mine/manifest.json
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from primus.artifacts.timing import stage_time
from primus.command_line import Command
from primus.config.frozen import add_settings_arguments, load_settings
from primus.errors import run_main


def main(argv: Sequence[str] | None = None) -> None:
    """Write the manifest."""
    args = command_parser().parse_args(argv)
    settings = load_settings(args, "weights")
    from primus.huggingface.fetch import fetch

    with stage_time("weights", args.output):
        manifest = fetch(settings.load_hf, args.output.parent / "model")
        manifest.save(args.output)
        print(f"weights: {manifest.directory}, {manifest.fingerprint[:16]}")


def command_parser() -> Command:
    """The arguments of the stage."""
    parser = Command("primus.weights", __doc__)
    add_settings_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, help="WeightsManifest to write")
    return parser


if __name__ == "__main__":
    run_main(main)
