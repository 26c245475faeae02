"""The commands that stand in the documentation, and whether the programs understand them.

A fenced block without a language, or with `sh`, holds command lines. In one with `console` they
stand after `$ `, and what they print follows. `text` is neither.
"""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest

from primus.errors import PrimusError

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md", "corpus/README.md")
# What a reader puts in for himself, and what the tests put in.
PLACEHOLDERS = {
    "<experiment>": "mine",
    "<e>": "mine",
    "<stage>": "train",
    "<key>": "0123456789ab",
    "<digest>": "0123456789ab",
    "<name>": "mine",
    "<target>": "train_mine",
    "EXPERIMENT": "mine",
}
_FENCE = re.compile(r"^( *)```(\S*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_SEPARATORS = {"|", "&&", ";", "||"}


@dataclass(frozen=True)
class Shown:
    """One simple command of a page.

    Attributes:
        where: page and line.
        words: the command and its arguments; redirections and variables left out.
        output: what the page says that it prints; None where it says nothing.
    """

    where: str
    words: tuple[str, ...]
    output: str | None = None

    def __str__(self) -> str:
        return f"{self.where}: {shlex.join(self.words)}"


def pages() -> list[Path]:
    """Every page that is to be held to what it says."""
    return [*(ROOT / name for name in PAGES), *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text: str) -> Iterator[tuple[int, str, str]]:
    """The fenced blocks of a page: number of the first line in them, language, text."""
    for found in _FENCE.finditer(text):
        indent, language, inner = found.groups()
        line = text.count("\n", 0, found.start()) + 2
        yield line, language, re.sub(f"^{indent}", "", inner, flags=re.MULTILINE)


def shown() -> list[Shown]:
    """Every command of every page."""
    return [
        one
        for page in pages()
        for line, language, text in blocks(page.read_text(encoding="utf-8"))
        for one in _of_block(str(page.relative_to(ROOT)), line, language, text)
    ]


def inline(program: str) -> list[Shown]:
    """Commands within sentences and tables that start so and are not cut short."""
    found = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        for code in re.findall(rf"`({re.escape(program)}\b[^`\n]*)`", _FENCE.sub("", text)):
            if "…" not in code and "..." not in code:
                (words,) = simple_commands(code)
                found.append(Shown(str(page.relative_to(ROOT)), words))
    return found


def _of_block(page: str, line: int, language: str, text: str) -> Iterator[Shown]:
    if language in ("", "sh"):
        for number, command in _lines(text):
            for words in simple_commands(command):
                yield Shown(f"{page}:{line + number}", words)
    elif language == "console":
        first, *rest = re.split(r"^\$ ", text, flags=re.MULTILINE)
        assert not first, f"{page}:{line}: a console starts with a prompt"
        for part in rest:
            command, _, output = part.partition("\n")
            (words,) = simple_commands(command)
            yield Shown(f"{page}:{line}", words, output)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Command lines and where they start; a backslash joins two."""
    waiting, start = "", 0
    for number, line in enumerate(text.splitlines()):
        start = start if waiting else number
        if line.endswith("\\"):
            waiting += line[:-1] + " "
        elif (waiting + line).strip():
            yield start, waiting + line
            waiting = ""


def simple_commands(line: str) -> list[tuple[str, ...]]:
    """The commands of a line; what is optional, in brackets, is put in."""
    for name, value in PLACEHOLDERS.items():
        line = line.replace(name, value)
    line = re.sub(r"(?<= )\[(--[^\]]*)\]", r"\1", line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    words = iter(lexer)
    for word in words:
        if word in _SEPARATORS:
            found.append([])
        elif word in ("<", ">", ">>"):
            next(words, None)
        else:
            found[-1].append(word)
    bare = [_without_variables(words) for words in found]
    return [tuple(words) for words in bare if words]


def _without_variables(words: list[str]) -> list[str]:
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    return words


def python_command(line: str) -> tuple[str, list[str]] | None:
    """Module and arguments of a line that runs one of our modules, else None."""
    (words, *_) = simple_commands(line)
    return module_of(words)


def module_of(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """The same of the words of a command."""
    if list(words[:2]) != ["python", "-m"]:
        return None
    name = words[2]
    return (name, list(words[3:])) if re.match(r"(primus|benchmarks)\b", name) else None


class _ParsedError(Exception):
    """Ends a command as soon as its arguments are read."""


def understood(module: str, arguments: Sequence[str]) -> str:
    """Empty where `python -m module arguments` gets past its command line; else what it says."""
    read = argparse.ArgumentParser.parse_args

    def parse(parser: argparse.ArgumentParser, *given: object) -> None:
        read(parser, *given)  # type: ignore[arg-type]
        raise _ParsedError

    name = f"{module}.__main__" if module in ("primus", "primus.config") else module
    main = importlib.import_module(name).main
    said = StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(said):
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        try:
            main(list(arguments))
        except (_ParsedError, PrimusError):
            return ""
        except SystemExit:
            return said.getvalue()
    raise AssertionError(f"{module} reads no arguments")


def said(expected: str, output: str) -> bool:
    """Whether `output` holds what a page shows: `...` stands for anything, any space for any."""
    rest = " ".join(output.split())
    for part in re.split(r"\.\.\.|…", " ".join(expected.split())):
        _, found, rest = rest.partition(part.strip())
        if part.strip() and not found:
            return False
    return True
