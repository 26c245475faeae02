"""The commands of this project, one line each.

Every command has a --help of its own, with examples.

Examples:
    python -m primus
    python -m primus --markdown > docs/commands.md
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator, Sequence

from primus.command_line import Command
from primus.errors import run_main

# What else `python -m` runs is started by these, by Snakemake or by each other.
GROUPS: dict[str, tuple[str, ...]] = {
    "Before a run": ("plan", "config", "explain", "import_config", "preflight"),
    "During and after it": ("status", "report", "compare", "sweep", "checkpoint", "generate"),
    "Tuned GEMMs": ("tune", "tune_store", "ab", "gemm.cublaslt.build"),
    "Other stages, as Snakemake calls them": (
        *("tokenizer", "data", "samples", "shapes", "weights", "train", "export", "evaluate"),
    ),
    "Other engines": ("kubernetes",),
}
_HEAD = """\
# Every command

Written by `python -m primus --markdown`; do not edit. `--help` of each command says the same. The
stages are called by Snakemake ([stages-and-files.md](stages-and-files.md)); what the status at a
command's end means is in [exit-status.md](exit-status.md).
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Print the list, or the page."""
    args = command_parser().parse_args(argv)
    print(page() if args.markdown else "\n".join(_listed()), end="" if args.markdown else "\n")


def command_parser() -> Command:
    """The arguments of the command."""
    parser = Command("primus", __doc__)
    parser.add_argument("--markdown", action="store_true", help="print docs/commands.md instead")
    return parser


def parser_of(name: str) -> Command:
    """The parser of a command, by what stands after `primus.` in its module's name."""
    module = "config.__main__" if name == "config" else name
    made: Command = importlib.import_module(f"primus.{module}").command_parser()
    return made


def page() -> str:
    """docs/commands.md."""
    parts = [_HEAD]
    for group, names in GROUPS.items():
        parts.append(f"\n## {group}\n")
        for name in names:
            parts.append("\n".join(_section(parser_of(name), 3)))
    return "\n".join(parts)


def _listed() -> Iterator[str]:
    names = [name for names in GROUPS.values() for name in names]
    width = max(len(_title(parser_of(name))) for name in names)
    for group, names_of_group in GROUPS.items():
        yield f"{group}:"
        for name in names_of_group:
            parser = parser_of(name)
            yield f"  {_title(parser):<{width}}  {(parser.description or '').splitlines()[0]}"


def _section(parser: Command, level: int) -> Iterator[str]:
    yield f"{'#' * level} `{_title(parser)}`\n"
    yield f"{_shown(parser.description or '')}\n"
    rows = [row for action in parser._actions for row in _rows(action)]
    if rows:
        yield "| argument | meaning |\n| --- | --- |"
        yield from rows
        yield ""
    inner = [action for action in parser._actions if isinstance(action.choices, dict)]
    if parser.examples and not inner:
        yield "```sh\n" + "\n".join(parser.examples) + "\n```\n"
    for action in inner:
        for command in action.choices.values() if isinstance(action.choices, dict) else ():
            yield from _section(command, level + 1)


def _title(parser: Command) -> str:
    if "--import" in parser.format_usage():
        return f"{parser.prog} (the store)"
    return parser.prog


def _shown(text: str) -> str:
    """`text` as Markdown: what stands between `<` and `>` is no HTML."""
    parts = text.split("`")
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


def _rows(action: argparse.Action) -> Iterator[str]:
    """A row of the table; none for --help and for subcommands, which have sections."""
    if action.dest == "help" or isinstance(action.choices, dict):
        return
    shown = ", ".join(action.option_strings)
    if action.nargs != 0:
        value = action.metavar or (f"{{{','.join(action.choices)}}}" if action.choices else None)
        value = str(value or (action.dest.upper() if shown else action.dest))
        more = " …" if action.nargs in ("+", "*") else ""
        shown = f"{shown} {value}{more}".strip()
    needed = " (required)" if action.option_strings and action.required else ""
    cells = (f"`{shown}`", f"{_shown(action.help or '')}{needed}")
    yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    run_main(main)
