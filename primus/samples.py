"""Cut token files into training samples: the index caches that every rank reads.

Examples:
    python -m primus.samples --settings S.json --data output/data/demo/manifest.json \\
        --output output/samples/demo/manifest.json
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from primus.artifacts.timing import stage_time
from primus.command_line import Command
from primus.config.frozen import add_settings_arguments, load_settings
from primus.dataset.samples import SamplesRequest, build_samples
from primus.errors import run_main


def main(argv: Sequence[str] | None = None) -> None:
    """Run the samples stage."""
    args = command_parser().parse_args(argv)
    settings = load_settings(args, "samples")
    with stage_time("samples", args.output):
        request = SamplesRequest(
            seq_length=settings.seq_length, split=settings.split, seed=settings.seed
        )
        manifest = build_samples(request, args.data, args.output)
        counts = ", ".join(f"{number:,} {split}" for split, number in manifest.samples.items())
        print(f"samples: {counts}, {manifest.fingerprint[:16]}")


def command_parser() -> Command:
    """The arguments of the stage."""
    parser = Command("primus.samples", __doc__)
    add_settings_arguments(parser)
    parser.add_argument("--data", type=Path, required=True, help="DataManifest to read")
    parser.add_argument("--output", type=Path, required=True, help="SamplesManifest to write")
    return parser


if __name__ == "__main__":
    # Nothing is compiled here, and importing torch's compiler takes seconds.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    run_main(main)
