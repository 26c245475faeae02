"""What is saved of a run: list it, read it all again, thin it out, export it.

RUN is an experiment with one run, experiment/key, or the path of a run. Only prune deletes, and not
while a trainer writes to the run. verify ends with status 74 where a checkpoint is bad.

Examples:
    python -m primus.checkpoint list llama3_8B_tiny
    python -m primus.checkpoint verify llama3_8B_tiny
    python -m primus.checkpoint prune llama3_8B_tiny --keep-last 2 --keep-every 1000 --dry-run
    python -m primus.checkpoint export llama3_8B_tiny --iteration 400 --output my-model
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from primus.artifacts.run import RunIdentity
from primus.command_line import Command, add_subcommand
from primus.errors import ArtifactError, CheckpointError, UserError, run_main
from primus.trainer import checkpoint_directory as directory
from primus.trainer.lease import lease
from primus.trainer.named_run import find_run, find_tokenizer
from primus.trainer.retention import Retention, delete, superfluous

_COLUMNS = ("iteration", "size", "saved", "state", "tokens", "attempt")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A checkpoint.

    Attributes:
        bytes: on disk. saved: seconds since the epoch. state: `good`, or what is wrong.
    """

    iteration: int
    bytes: int
    state: str
    saved: float | None = None
    tokens: int | None = None
    attempt: int | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Find the run, then do what is asked."""
    args = command_parser().parse_args(argv)
    run = find_run(args.run)
    {"list": _list, "verify": _verify, "prune": _prune, "export": _export}[args.command](run, args)


def command_parser() -> Command:
    """The arguments of the command."""
    parser = Command("primus.checkpoint", __doc__)
    commands = parser.add_subcommands()
    found = add_subcommand(commands, "list", "every checkpoint, by manifests and sizes of files")
    found.add_argument("--json", action="store_true", help="one JSON object per checkpoint")
    verify = add_subcommand(commands, "verify", "hash every file of every checkpoint")
    prune = add_subcommand(commands, "prune", "delete what need not be kept")
    prune.add_argument("--keep-last", type=_positive, required=True, metavar="N", help="newest")
    prune.add_argument("--keep-every", type=_positive, metavar="N", help="and multiples of N")
    prune.add_argument("--dry-run", action="store_true", help="only say what would go")
    export = add_subcommand(commands, "export", "write a Hugging Face directory")
    export.add_argument("--output", type=Path, required=True, help="the directory")
    export.add_argument("--iteration", type=_positive, help="of the checkpoint; default: newest")
    export.add_argument(
        "--tokenizer", type=Path, help="its manifest; default: found by fingerprint"
    )
    for command in (found, verify, prune, export):
        command.add_argument("run", metavar="RUN", help="experiment, experiment/key or path")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def rows(run: Path) -> Iterator[Row]:
    """Every published checkpoint, oldest first; their files are measured, not read."""
    key = RunIdentity.load(run / "run.json").key
    for path in reversed(directory.newest_first(run / "checkpoints")):
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        row = Row(iteration=directory.iteration_of(path) or 0, bytes=size, state="good")
        try:
            manifest = directory.load_manifest(path, key)
        except ArtifactError as error:
            yield replace(row, state=str(error))
            continue
        yield replace(
            row,
            state=directory.first_wrong_size(path, manifest) or "good",
            saved=manifest.created,
            tokens=manifest.consumed_tokens,
            attempt=manifest.attempt,
        )


def _list(run: Path, args: argparse.Namespace) -> None:
    found = list(rows(run))
    if args.json:
        for row in found:
            print(json.dumps(asdict(row)))
        return
    texts = [_COLUMNS, *map(_texts, found)]
    widths = [max(len(text[column]) for text in texts) for column in range(len(_COLUMNS))]
    for text in texts:
        print(
            "  ".join(part.ljust(width) for part, width in zip(text, widths, strict=True)).rstrip()
        )
    others = sorted(
        p.name for p in (run / "checkpoints").glob("*") if not p.name.startswith("iter_")
    )
    if others:
        print(f"no checkpoints, set aside or unfinished: {', '.join(others)}")


def _texts(row: Row) -> tuple[str, ...]:
    saved = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.saved)) if row.saved else "-"
    tokens = f"{row.tokens:,}" if row.tokens is not None else "-"
    size = f"{row.bytes / 2**20:,.1f} MiB"
    return str(row.iteration), size, saved, row.state, tokens, str(row.attempt or "-")


def _verify(run: Path, _: argparse.Namespace) -> None:
    key, found = RunIdentity.load(run / "run.json").key, directory.newest_first(run / "checkpoints")
    bad = []
    for path in reversed(found):
        try:
            directory.verify(path, key)
            print(f"{path.name}: good", flush=True)
        except ArtifactError as error:
            bad.append(path.name)
            print(f"{path.name}: bad: {error}", flush=True)
    if bad:
        raise CheckpointError(
            f"{run}: {len(bad)} of {len(found)} checkpoints are bad: {', '.join(bad)}. "
            "Fix: none is needed to go on: training takes the newest good one"
        )


def _prune(run: Path, args: argparse.Namespace) -> None:
    key, root = RunIdentity.load(run / "run.json").key, run / "checkpoints"
    retention = Retention(keep_last=args.keep_last, keep_every=args.keep_every)
    if args.dry_run:
        for path in superfluous(root, key, retention):
            print(f"would delete {path}")
        return
    with lease(run):
        for path in delete(superfluous(root, key, retention)):
            print(f"deleted {path}")


def _export(run: Path, args: argparse.Namespace) -> None:
    from primus.export_checkpoint import export_checkpoint, require_vacant

    require_vacant(args.output)
    identity, root = RunIdentity.load(run / "run.json"), run / "checkpoints"
    found = {directory.iteration_of(path): path for path in reversed(directory.newest_first(root))}
    if not found or (args.iteration is not None and args.iteration not in found):
        there = ", ".join(map(str, found)) or "none"
        raise UserError(f"--iteration: {root} has not this one. Fix: one of these: {there}")
    checkpoint = found[args.iteration] if args.iteration else list(found.values())[-1]
    tokenizer = args.tokenizer or find_tokenizer(identity.tokenizer_fingerprint)
    export_checkpoint(checkpoint, identity, tokenizer, args.output / "manifest.json")


if __name__ == "__main__":
    run_main(main)
