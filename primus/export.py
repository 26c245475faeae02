"""Export the newest good checkpoint of a run as a Hugging Face directory, with a model card.

transformers loads it: `AutoModelForCausalLM.from_pretrained("output/runs/…/hf")`.

Examples:
    python -m primus.export --settings export.json --train train.json \\
        --tokenizer tokenizer/manifest.json --output output/runs/mine/hf/manifest.json
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from primus.artifacts.run import TrainManifest
from primus.artifacts.timing import stage_time
from primus.command_line import Command
from primus.config.frozen import add_settings_arguments, load_settings
from primus.errors import run_main


def main(argv: Sequence[str] | None = None) -> None:
    """Write the directory, then its manifest."""
    args = command_parser().parse_args(argv)
    # Settings that were frozen before there were cards do not have the group.
    settings = load_settings(args, "export")
    card = getattr(settings, "model_card", None)
    stated = {"license": card.license, "language": card.language} if card else {}
    with stage_time("export", args.output):
        export(args.train, args.tokenizer, args.output, settings.extent, **stated)


def command_parser() -> Command:
    """The arguments of the stage."""
    parser = Command("primus.export", __doc__)
    add_settings_arguments(parser)
    parser.add_argument("--train", type=Path, required=True, help="train.json of the run")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer manifest")
    parser.add_argument("--output", type=Path, required=True, help="hf/manifest.json")
    return parser


def export(
    train_path: Path,
    tokenizer_path: Path,
    output: Path,
    settings: Mapping[str, Any] | None = None,
    **stated: Any,
) -> None:
    """Export the last checkpoint that `train_path` lists.

    Args:
        settings: what a change of exports again.
        stated: what the user says of the model; `primus.huggingface.card.Stated`.

    Raises:
        DataError, ArtifactError: as `export_checkpoint`.
    """
    train = TrainManifest.load(train_path)
    from primus.export_checkpoint import export_checkpoint
    from primus.huggingface.card import Stated

    checkpoint = train_path.parent / "checkpoints" / train.checkpoints[-1].name
    export_checkpoint(checkpoint, train, tokenizer_path, output, Stated(**stated), settings or {})


if __name__ == "__main__":
    run_main(main)
