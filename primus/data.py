"""Tokenise text into Megatron's token files; a stopped run goes on where it was.

Examples:
    python -m primus.data --settings S.json --tokenizer output/tokenizer/demo/manifest.json \\
        --output output/data/demo/manifest.json
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from primus.artifacts.timing import stage_time
from primus.command_line import Command
from primus.config.frozen import StageSettings, add_settings_arguments, load_settings
from primus.dataset.build import DataRequest, build_data
from primus.dataset.sources import HubDataset
from primus.dataset.tokenizer import load_tokenizer
from primus.errors import run_main


def main(argv: Sequence[str] | None = None) -> None:
    """Run the data stage."""
    args = command_parser().parse_args(argv)
    settings = load_settings(args, "data")
    with stage_time("data", args.output):
        manifest = build_data(_request(settings), load_tokenizer(args.tokenizer), args.output)
        print(
            f"data: {manifest.documents:,} documents, {manifest.tokens:,} tokens, "
            f"unigram entropy {manifest.unigram_entropy:.4f}, {manifest.fingerprint[:16]}"
        )


def command_parser() -> Command:
    """The arguments of the stage."""
    parser = Command("primus.data", __doc__)
    add_settings_arguments(parser)
    parser.add_argument("--tokenizer", type=Path, required=True, help="TokenizerManifest to read")
    parser.add_argument("--output", type=Path, required=True, help="DataManifest to write")
    return parser


def _request(settings: StageSettings) -> DataRequest:
    hub = settings.hf_dataset
    return DataRequest(
        dataset=settings.dataset,
        data_path=settings.data_path,
        hub=HubDataset(**hub.as_dict()) if hub is not None else None,
        json_key=settings.json_key,
        append_eod=settings.append_eod,
        max_bad_lines=settings.max_bad_lines,
        workers=settings.workers,
    )


if __name__ == "__main__":
    # Nothing is compiled here, and importing torch's compiler takes seconds.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    run_main(main)
