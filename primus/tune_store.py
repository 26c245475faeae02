"""The store of measured GEMMs: show it, or move it as one archive.

One of --list, --export and --import says what is to be done.

Examples:
    python -m primus.tune --list                    # stacks, winners, failures
    python -m primus.tune --list --stack 2aab       # the problems of one stack
    python -m primus.tune --export gemm.tar.gz
    python -m primus.tune --import gemm.tar.gz --keep newer
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from primus.command_line import Command
from primus.config.schema.tuning import GemmTuning
from primus.errors import ArtifactError, UserError

FLAGS = ("--list", "--export", "--import")


def is_asked_for(arguments: Sequence[str]) -> bool:
    """Whether the arguments of `python -m primus.tune` are about the store."""
    return any(argument.partition("=")[0] in FLAGS for argument in arguments)


def main(arguments: Sequence[str]) -> None:
    """Do what the arguments ask for.

    Raises:
        UserError: no stack has the key that was given.
        ArtifactError: there is no store, or files of it or of the archive are damaged.
    """
    args = command_parser().parse_args(arguments)
    if args.list:
        from primus.gemm.listing import list_store

        print("\n".join(list_store(args.store, args.stack and _key(args.store, args.stack))))
    elif args.export:
        _export(args)
    else:
        _import(args)


def command_parser() -> Command:
    """The arguments of `python -m primus.tune` that are about the store."""
    parser = Command("primus.tune", __doc__)
    from primus.gemm.archive import KEEP

    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="what the store holds")
    what.add_argument("--export", type=Path, metavar="ARCHIVE", help="write it as a .tar.gz")
    what.add_argument("--import", type=Path, metavar="ARCHIVE", dest="archive", help="add to it")
    default = GemmTuning.model_fields["store"].default
    parser.add_argument("--store", type=Path, default=Path(default), help=f"default: {default}")
    parser.add_argument("--stack", metavar="KEY", help="only this one; its first digits will do")
    parser.add_argument(
        "--keep",
        choices=KEEP,
        default="samples",
        help="which of two differing measurements: the one with more samples (default), the newer "
        "one, the one that is there, the one of the archive",
    )
    return parser


def _key(store: Path, start: str) -> str:
    from primus.gemm.stored import stack_keys

    keys = stack_keys(store)
    found = [key for key in keys if key.startswith(start)]
    if len(found) != 1:
        raise UserError(
            f"--stack {start}: {'several stacks start' if found else 'no stack starts'} with that "
            f"in {store}. Fix: one of {', '.join(found or keys) or '(the store is empty)'}"
        )
    return found[0]


def _export(args: argparse.Namespace) -> None:
    from primus.gemm.archive import export_store
    from primus.gemm.stored import stack_keys

    keys = [_key(args.store, args.stack)] if args.stack else stack_keys(args.store)
    count = export_store(args.store, keys, args.export)
    size = args.export.stat().st_size / 1024
    print(
        f"{args.export}: {count} files of {len(keys)} stack{'s' * (len(keys) != 1)}, {size:.1f} KiB"
    )


def _import(args: argparse.Namespace) -> None:
    from primus.gemm.archive import import_store

    done = import_store(args.archive, args.store, args.keep)
    for line in done.replaced:
        print(f"replaced {line}")
    for line in done.kept:
        print(f"kept {line}")
    print(
        f"{args.store}: {done.added} added, {done.same} there already, {len(done.replaced)} "
        f"replaced, {len(done.kept)} kept against the archive, {len(done.refused)} refused"
    )
    if done.refused:
        raise ArtifactError("\n".join(f"{args.archive}: {why}" for why in done.refused))
