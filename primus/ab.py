"""Tuned GEMMs against the default ones in an experiment's own training: the gain, if there is one.

Trains short segments with either kernels in turns, in a directory of its own, and touches no run.

Examples:
    snakemake ab_llama3_8B_tiny
    python -m primus.ab --settings train.json --samples samples/manifest.json \\
        --tokenizer tokenizer/manifest.json --tuned tuned.jsonl --output ab.json
"""

from __future__ import annotations

import math
import time
from argparse import ArgumentTypeError
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from primus.artifacts.gemm import load_tuned
from primus.artifacts.timing import stage_time
from primus.artifacts.tokens import SamplesManifest, TokenizerManifest
from primus.command_line import Command
from primus.config.frozen import add_settings_arguments, load_settings
from primus.config.schema.ab import Ab
from primus.errors import UserError, run_main
from primus.launch import seconds_left

# Of a job's time: for ending ranks that may not end by themselves, and for writing.
_LAST_SECONDS = 60.0


def main(argv: Sequence[str] | None = None) -> None:
    """Run the segments, write what they say, and tell it.

    Raises:
        UserError: the tuned result is that of an experiment without tuning.
    """
    args = command_parser().parse_args(argv)
    settings = load_settings(args, "train")
    with stage_time("ab", args.output):
        deadline, over = _deadline(args.minutes)
        # Before torch is imported: what is missing is said at once.
        SamplesManifest.load(args.samples)
        TokenizerManifest.load(args.tokenizer)
        header, _ = load_tuned(args.tuned)
        if header.stopped == "disabled":
            raise UserError(
                f"{args.tuned}: was made with gemm_tuning.enabled = false: there are no tuned "
                "kernels to compare. Fix: write true, and tune again"
            )
        from primus.ab_compare import Asked, compare

        asked = Asked(
            samples=args.samples,
            tokenizer=args.tokenizer,
            tuned=args.tuned,
            weights=args.weights,
            rounds=args.rounds,
            warm_up=args.warm_up,
            steps=args.steps,
            deadline=deadline,
            over=over,
        )
        made = compare(settings, asked, args.output.parent / "segments")
        made.save(args.output)
    for line in made.lines:
        print(line, flush=True)
    print(f"measured: {args.output}", flush=True)


def _deadline(minutes: float) -> tuple[float, str]:
    """`time.monotonic()` at which no more segments are run, and what is over then."""
    now, left = time.monotonic(), seconds_left()
    if left is not None and left - _LAST_SECONDS < 60 * minutes:
        return now + max(left - _LAST_SECONDS, left / 2), "the job's time was over"
    return now + 60 * minutes, "ab.minutes were over"


def command_parser() -> Command:
    """The arguments of the stage."""
    parser = Command("primus.ab", __doc__)
    add_settings_arguments(parser)
    parser.add_argument("--samples", type=Path, required=True, help="samples manifest")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer manifest")
    parser.add_argument("--tuned", type=Path, required=True, help="tuned GEMMs")
    parser.add_argument("--weights", type=Path, help="weights manifest; without it random weights")
    keys = Ab()
    for name, kind, default, what in (
        ("--rounds", int, keys.rounds, "rounds, each of a segment with either kernels"),
        ("--warm-up", int, keys.warm_up_steps, "steps of a segment that are not timed"),
        ("--steps", int, keys.steps_per_segment, "steps of a segment that are timed"),
        ("--minutes", float, keys.minutes, "minutes for all of them, at most"),
    ):
        words = f"{what}; default {default:g}"
        parser.add_argument(name, type=partial(_positive, kind), default=default, help=words)
    parser.add_argument("--output", type=Path, required=True, help="ab.json")
    return parser


def _positive(kind: type[int] | type[float], text: str) -> float:
    with suppress(ValueError):
        if 0 < (number := kind(text)) < math.inf:
            return number
    raise ArgumentTypeError(f"{text}: is no {kind.__name__} above 0")


if __name__ == "__main__":
    run_main(main)
