"""How a command ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from primus import errors
from primus.errors import PrimusError, Problem

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


def run_raising(expression: str) -> subprocess.CompletedProcess[str]:
    """A command whose work ends by raising the expression."""
    program = (
        f"import errno, primus.errors as e\ndef main():\n    raise {expression}\ne.run_main(main)"
    )
    return subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


def classes() -> list[type[PrimusError]]:
    """Every kind of error of primus.errors; kinds elsewhere have the statuses of these."""
    found: list[type[PrimusError]] = [PrimusError]
    for kind in found:
        found += kind.__subclasses__()
    return [kind for kind in found if kind.__module__ == errors.__name__]


def test_the_page_lists_every_status_and_every_class() -> None:
    rows = re.findall(
        r"^\| (\d+) \| (.+?) \| (.*?) ?\|$",
        (REPOSITORY / "docs/exit-status.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert {int(status): meaning for status, meaning, _ in rows} == errors.meanings()
    listed = {name: int(row[0]) for row in rows for name in re.findall(r"`(\w+)`", row[2])}
    assert listed == {kind.__name__: kind.exit_code for kind in classes()}


def test_each_status_has_one_meaning() -> None:
    assert all(kind.meaning == errors.meanings()[kind.exit_code] for kind in classes())
    assert not [kind for kind in classes() if kind.exit_code == 0]


@pytest.mark.parametrize("kind", classes(), ids=lambda kind: kind.__name__)
def test_a_command_ends_with_the_status_of_its_error_and_says_it(kind: type[PrimusError]) -> None:
    arguments = {"ConfigError": "[]", "PreemptedError": "'no', advanced=True"}
    done = run_raising(f"e.{kind.__name__}({arguments.get(kind.__name__, repr('no'))})")
    assert done.returncode == kind.exit_code
    assert "Traceback" not in done.stderr
    said = f"exit status {kind.exit_code}: {kind.meaning}"
    assert (said in done.stderr) == (kind.exit_code != 2)


@pytest.mark.parametrize(
    "name", ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EIO", "EMFILE", "ENOTDIR", "EEXIST"]
)
def test_what_the_file_system_refuses_is_one_line(name: str) -> None:
    done = run_raising(f"OSError(errno.{name}, 'refused', 'output/x')")
    assert done.returncode == os.EX_IOERR
    first, second = done.stderr.splitlines()
    assert first.startswith("error: output/x: refused. Fix: ")
    assert second == f"exit status 74: {errors.meanings()[74]}"


@pytest.mark.parametrize("defect", ["KeyError('x')", "OSError(errno.EBADF, 'x')", "OSError('x')"])
def test_a_defect_keeps_its_traceback(defect: str) -> None:
    done = run_raising(defect)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
