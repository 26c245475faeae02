"""Measure how well an exported model predicts text that it was not trained on: eval.json.

`snakemake eval_<experiment>` trains and exports what is not there yet, and shows the result in the
report.

Examples:
    snakemake eval_llama3_8B_tiny
    python -m primus.evaluate --settings evaluate.json --export hf/manifest.json \\
        --samples samples/manifest.json --output eval.json
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from primus.artifacts.export import ExportManifest
from primus.artifacts.timing import stage_time
from primus.artifacts.tokens import SamplesManifest
from primus.command_line import Command
from primus.config.frozen import add_settings_arguments, load_settings
from primus.errors import run_main


def main(argv: Sequence[str] | None = None) -> None:
    """Load the model, predict the text, write the manifest."""
    args = command_parser().parse_args(argv)
    settings = load_settings(args, "evaluate")
    with stage_time("evaluate", args.output):
        # Before torch is imported: what is missing is said at once.
        ExportManifest.load(args.export)
        SamplesManifest.load(args.samples)
        from primus.evaluate_export import evaluate

        made = evaluate(settings, args.export, args.samples)
        made.save(args.output)
    print(
        f"{args.output}: loss {made.loss:.4f} nats per token, perplexity {made.perplexity:.4g}, "
        f"{made.bits_per_byte:.4f} bits per byte, over {made.tokens:,} tokens"
    )


def command_parser() -> Command:
    """The arguments of the stage."""
    parser = Command("primus.evaluate", __doc__)
    add_settings_arguments(parser)
    parser.add_argument("--export", type=Path, required=True, help="manifest of the export")
    parser.add_argument("--samples", type=Path, required=True, help="manifest of the samples")
    parser.add_argument("--output", type=Path, required=True, help="eval.json")
    return parser


if __name__ == "__main__":
    run_main(main)
