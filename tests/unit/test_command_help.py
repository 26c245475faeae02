"""--help of every command: what it is for, what each argument means, and examples that parse."""

from __future__ import annotations

import pytest

from primus.__main__ import GROUPS, page, parser_of
from primus.command_line import Command
from tests.documented import python_command, understood
from tests.unit.commands import ROOT, every_command
from tests.unit.test_exit_status import PEOPLE, STAGES

NAMES = ["", *(name for names in GROUPS.values() for name in names)]


def parser_named(name: str) -> Command:
    return parser_of(name or "__main__")


def parsers(parser: Command) -> list[Command]:
    """A command, and its subcommands."""
    found = [parser]
    for action in parser._actions:
        if isinstance(action.choices, dict):
            found += [inner for made in action.choices.values() for inner in parsers(made)]
    return found


def test_every_command_for_people_is_listed() -> None:
    """Those left out are started by Snakemake, by a stage or by a rank, with what they need."""
    listed = {name for name in NAMES if name} - {"tune_store"}
    assert listed == {*PEOPLE, *STAGES, "gemm.cublaslt.build"}
    assert {f"primus.{name}" for name in listed} <= every_command()


@pytest.mark.parametrize("name", NAMES)
def test_help_says_what_each_argument_means_and_shows_an_example(name: str) -> None:
    for parser in parsers(parser_named(name)):
        text = parser.format_help()
        assert parser.description
        assert parser.description.strip().endswith(".")
        unexplained = [
            action.dest
            for action in parser._actions
            if not action.help and not isinstance(action.choices, dict)
        ]
        assert not unexplained, parser.prog
        _, found, examples = text.partition("\nexamples:\n")
        assert found, parser.prog
        assert parser.prog in examples


@pytest.mark.parametrize("name", NAMES)
def test_an_example_parses(name: str) -> None:
    examples = parser_named(name).examples
    assert examples
    called = [command for example in examples if (command := python_command(example))]
    assert called
    for module, arguments in called:
        assert not (why := understood(module, arguments)), f"{module} {arguments}: {why}"


def test_an_argument_that_does_not_exist_is_seen() -> None:
    assert "unrecognized" in understood("primus.plan", ["llama3_8B", "--confg", "lr=1"])
    assert "required" in understood("primus.train", ["--settings", "S.json"])
    assert "invalid choice" in understood("primus.checkpoint", ["lst", "llama3_8B"])
    assert not understood("primus.report", ["--check", "nowhere.json"])


def test_a_docstring_becomes_description_and_examples() -> None:
    doc = "What.\n\nMore.\n\nExamples:\n    a one  # why\n    a two \\\n        --three\n"
    parser = Command("a", doc, prog="a")
    assert parser.description == "What.\n\nMore."
    assert [" ".join(example.split()) for example in parser.examples] == [
        "a one # why",
        "a two --three",
    ]
    commands = parser.add_subcommands()
    made = commands.add_parser("two")
    assert [" ".join(example.split()) for example in made.examples] == ["a two --three"]
    assert made.epilog == "examples:\n    a two \\\n        --three"


def test_the_page_of_commands_is_what_the_parsers_say() -> None:
    path = ROOT / "docs/commands.md"
    assert path.read_text() == page(), "run: python -m primus --markdown > docs/commands.md"
