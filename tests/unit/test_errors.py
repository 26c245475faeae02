"""How a command ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from primus.errors import Problem

REPOSITORY = Path(__file__).parents[2]


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    many_lines = (
        "from primus.errors import run_main\nrun_main(lambda: print('line\\n' * 1_000_000))"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", many_lines],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert program.stdout
    assert program.stderr
    assert program.stdout.readline() == b"line\n"
    program.stdout.close()
    assert program.stderr.read() == b""
    assert program.wait() == 128 + 13
    program.stderr.close()


@pytest.mark.parametrize("odd", ["\x85", "\u2028", "\r", "\n", "\x1b[2J"])
def test_a_mistake_is_one_line_whatever_its_value_holds(odd: str) -> None:
    text = str(Problem(file="a.yaml", key="k", value=f"x{odd}y", why="is odd", fix="write z"))
    assert len(text.splitlines()) == 1
    assert text.isprintable()
    assert text == f"a.yaml: k = x{ascii(odd)[1:-1]}y: is odd. Fix: write z"
