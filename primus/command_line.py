"""The parser of a command: what `--help` says is the docstring of its module.

Such a docstring ends with a part that starts with the line `Examples:`. Each example is a command
line, indented by four; it may go on after a backslash, and have a remark after `#`.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Subcommands = argparse._SubParsersAction["Command"]

_HEADING = "\n\nExamples:\n"


class Command(argparse.ArgumentParser):
    """An argument parser whose help ends with examples.

    Attributes:
        examples: command lines, a remark after `#` included; of a subcommand its own.
    """

    def __init__(
        self, module: str = "", doc: str | None = None, *, inherited: str = "", **options: Any
    ) -> None:
        """Make the parser.

        Args:
            module: what `python -m` runs; left out for a subcommand.
            doc: the docstring of that module.
            inherited: for a subcommand: the examples of its command.
            options: of `argparse.ArgumentParser`.
        """
        options.setdefault("prog", f"python -m {module}")
        description, _, given = (doc or "").partition(_HEADING)
        options.setdefault("description", description.strip())
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self._examples = given or _of_subcommand(inherited, self.prog)
        self.examples = [part.replace("\\\n", " ") for part in _parts(self._examples)]
        self.epilog = f"examples:\n{self._examples.rstrip()}" if self.examples else None

    def add_subcommands(self) -> Subcommands:
        """Start a group of subcommands, one of which has to be given."""
        kind: Any = partial(Command, inherited=self._examples)
        return self.add_subparsers(
            dest="command", required=True, metavar="COMMAND", parser_class=kind
        )


def add_subcommand(commands: Subcommands, name: str, what: str) -> Command:
    """Add a subcommand; `what` it does is shown in both helps."""
    return commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")


def _parts(text: str) -> list[str]:
    """The examples, each with the lines on which it goes on."""
    found: list[str] = []
    for line in text.splitlines():
        if found and found[-1].endswith("\\"):
            found[-1] += f"\n{line.strip()}"
        elif line.strip():
            found.append(line.strip())
    return found


def _of_subcommand(text: str, prog: str) -> str:
    own = [part for part in _parts(text) if f"{part} ".startswith(f"{prog} ")]
    return "\n".join("    " + part.replace("\n", "\n        ") for part in own)
