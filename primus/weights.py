"""Fetch and fingerprint the Hugging Face model from which a run starts.

A directory is read in place; a model of the hub is downloaded beside the manifest. Example:

    python -m primus.weights --settings weights.json --output output/weights/mine/manifest.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from primus.artifacts.timing import stage_time
from primus.config.frozen import add_settings_arguments, load_settings
from primus.errors import run_main


def main(argv: Sequence[str] | None = None) -> None:
    """Write the manifest."""
    parser = argparse.ArgumentParser(
        prog="python -m primus.weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_settings_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, help="WeightsManifest to write")
    args = parser.parse_args(argv)
    settings = load_settings(args, "weights")
    from primus.huggingface.fetch import fetch

    with stage_time("weights", args.output):
        manifest = fetch(settings.load_hf, args.output.parent / "model")
        manifest.save(args.output)
        print(f"weights: {manifest.directory}, {manifest.fingerprint[:16]}")


if __name__ == "__main__":
    run_main(main)
