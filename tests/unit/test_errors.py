"""How a command ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
