"""Make the tokenizer of an experiment: train one from its text, or copy one.

Examples:
    python -m primus.tokenizer --settings S.json --output output/tokenizer/demo/manifest.json
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from primus.artifacts.timing import stage_time
from primus.command_line import Command
from primus.config.frozen import add_settings_arguments, load_settings
from primus.dataset.make_tokenizer import TokenizerRequest, make_tokenizer
from primus.errors import run_main


def main(argv: Sequence[str] | None = None) -> None:
    """Run the tokenizer stage."""
    args = command_parser().parse_args(argv)
    settings = load_settings(args, "tokenizer")
    with stage_time("tokenizer", args.output):
        request = TokenizerRequest(
            model=settings.tokenizer_model,
            data_path=settings.tokenizer_data_path,
            vocab_size=settings.tokenizer_vocab_size,
            json_key=settings.json_key,
            max_bad_lines=settings.max_bad_lines,
        )
        manifest = make_tokenizer(request, args.output)
        print(f"tokenizer: {manifest.vocab_size} entries, {manifest.fingerprint[:16]}")


def command_parser() -> Command:
    """The arguments of the stage."""
    parser = Command("primus.tokenizer", __doc__)
    add_settings_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, help="TokenizerManifest to write")
    return parser


if __name__ == "__main__":
    run_main(main)
