"""Train: samples and tuned GEMMs to a verified run.

Starts the ranks, and writes the manifest only when the run's last checkpoint verifies. Run again
after any end, it goes on where the newest good checkpoint is. Example:

    python -m primus.train --settings train.json --samples samples/manifest.json \\
        --tokenizer tokenizer/manifest.json --output output/runs/mine/train.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from primus.artifacts.provenance import code_version, libraries
from primus.artifacts.run import RunIdentity
from primus.artifacts.timing import stage_time
from primus.artifacts.tokens import SamplesManifest, TokenizerManifest
from primus.config.frozen import StageSettings, add_settings_arguments, load_settings
from primus.errors import DataError, run_main
from primus.files import atomic_write, canonical_json
from primus.launch import Ranks, run_ranks, thread_environment
from primus.trainer import run_directory
from primus.trainer.outcome import finished, require_completed, train_manifest


def main(argv: Sequence[str] | None = None) -> None:
    """Train up to `train_iters`, then verify and write the manifest."""
    parser = argparse.ArgumentParser(
        prog="python -m primus.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_settings_arguments(parser)
    parser.add_argument("--samples", type=Path, required=True, help="samples manifest")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer manifest")
    parser.add_argument("--tuned", type=Path, help="tuned GEMMs; without it none is applied")
    parser.add_argument(
        "--output", type=Path, required=True, help="train.json in the run's directory"
    )
    args = parser.parse_args(argv)
    settings = load_settings(args, "train")
    with stage_time("train", args.output):
        train(settings, args)


def train(settings: StageSettings, args: argparse.Namespace) -> None:
    """Bring the run of `args.output`'s directory to `train_iters` and write its manifest."""
    directory: Path = args.output.parent
    samples = SamplesManifest.load(args.samples)
    tokenizer = TokenizerManifest.load(args.tokenizer)
    if tokenizer.vocab_size > settings.vocab_size:
        raise DataError(
            f"{args.tokenizer}: vocab_size = {tokenizer.vocab_size} ids do not fit into the "
            f"model's vocab_size = {settings.vocab_size}. Fix: raise vocab_size in the model's file"
        )
    run_directory.check_free(directory)
    tuned, tuned_sha256 = run_directory.adopt_tuned(directory, args.tuned)
    identity = RunIdentity(
        experiment=settings.experiment,
        key=settings.key,
        settings=settings.identity,
        samples_fingerprint=samples.fingerprint,
        tokenizer_fingerprint=tokenizer.fingerprint,
        tuned_sha256=tuned_sha256,
    )
    run_directory.claim(directory, identity)
    if not finished(directory, settings):
        status = run_ranks(_ranks(settings, args, tuned, identity))
        require_completed(directory, settings, status)
    train_manifest(directory, settings, identity, samples).save(args.output)


def _ranks(
    settings: StageSettings, args: argparse.Namespace, tuned: Path | None, identity: RunIdentity
) -> Ranks:
    directory: Path = args.output.parent
    attempt = run_directory.new_attempt(directory)
    commit, dirty = code_version()
    about = {
        "key": identity.key,
        "parent": run_directory.newest_checkpoint(directory),
        "samples_fingerprint": identity.samples_fingerprint,
        "tokenizer_fingerprint": identity.tokenizer_fingerprint,
        "tuned_sha256": identity.tuned_sha256,
        "code_commit": commit,
        "code_dirty": dirty,
        "libraries": libraries(),
    }
    with atomic_write(attempt / "about.json") as stream:
        json.dump(about, stream, indent=2, sort_keys=True)
    arguments = [
        *("--settings", str(args.settings), "--options", canonical_json(settings.options)),
        *("--samples", str(args.samples), "--run-directory", str(directory)),
        *("--attempt", str(int(attempt.name)), "--about", str(attempt / "about.json")),
        *(("--tuned", str(tuned)) if tuned else ()),
    ]
    return Ranks(
        module="primus.train_rank",
        arguments=arguments,
        nproc_per_node=settings.nproc_per_node,
        nodes=settings.nodes,
        environment=thread_environment(settings.threads_per_rank) | settings.env.as_dict(),
        log_directory=attempt / "logs",
    )


if __name__ == "__main__":
    run_main(main)
