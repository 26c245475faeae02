"""Train: samples and tuned GEMMs to a verified run.

Starts the ranks, and writes the manifest only when the run's last checkpoint verifies. Run again
after any end, it goes on where the newest good checkpoint is.

Examples:
    python -m primus.train --settings train.json --samples samples/manifest.json \\
        --tokenizer tokenizer/manifest.json --output output/runs/mine/train.json
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from primus.artifacts.timing import stage_time
from primus.command_line import Command
from primus.config.frozen import StageSettings, add_settings_arguments, load_settings
from primus.errors import PreemptedError, run_main
from primus.huggingface.start import open_start
from primus.launch import ask_for_another_job
from primus.preflight_step import check_before_training
from primus.trainer.run_directory import newest_checkpoint
from primus.trainer.supervise import train


def main(argv: Sequence[str] | None = None) -> None:
    """Train up to `train_iters`, then verify and write the manifest."""
    args = command_parser().parse_args(argv)
    settings = load_settings(args, "train")
    if args.weights and newest_checkpoint(args.output.parent) is None:
        open_start(args.weights, settings)
    with stage_time("train", args.output):
        try:
            manifest = train(
                settings,
                args.output.parent,
                settings_path=args.settings,
                samples_path=args.samples,
                tokenizer_path=args.tokenizer,
                tuned_path=args.tuned,
                weights_path=args.weights,
                activate=partial(_activate, settings),
                check_nodes=partial(check_before_training, settings, args.settings),
            )
        except PreemptedError as error:
            # Without progress the next job would end like this one.
            if error.advanced and ask_for_another_job():
                print("training goes on in this job's next turn", flush=True)
            raise
        manifest.save(args.output)


def command_parser() -> Command:
    """The arguments of the stage."""
    parser = Command("primus.train", __doc__)
    add_settings_arguments(parser)
    parser.add_argument("--samples", type=Path, required=True, help="samples manifest")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer manifest")
    parser.add_argument("--tuned", type=Path, help="tuned GEMMs; without it none is applied")
    parser.add_argument("--weights", type=Path, help="weights manifest; without it random weights")
    parser.add_argument(
        "--output", type=Path, required=True, help="train.json in the run's directory"
    )
    return parser


def _activate(settings: StageSettings, tuned: Path) -> Mapping[str, str]:
    from primus.tune_verify import activated_and_verified

    return activated_and_verified(settings, tuned)


if __name__ == "__main__":
    run_main(main)
