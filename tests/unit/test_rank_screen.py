"""The bar of a training: on a terminal alone, and under its lines."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from terminal import terminal
from test_report_figures import metrics_row

from primus.ranks.forks import Program
from primus.ranks.logs import shown
from primus.ranks.screen import on_screen, screens
from primus.trainer.metrics import live_line


def line(iteration: int) -> str:
    return live_line(metrics_row(iteration, loss=3.0), 40)


def bars(text: str) -> list[str]:
    return re.findall(r"(\d+%)\|.*?\| (\d+/\d+, ETA [\d:]+)", text)


def test_lines_stand_above_the_bar() -> None:
    with terminal() as since:
        with on_screen():
            print("resuming from iter_0000010")
            assert bars(since()) == []
            print(line(20), flush=True)
            print("iteration       20 | validation loss 3.0000")
            print(line(30), flush=True)
            assert sys.stdout.fileno() >= 0, "faulthandler asks for it"
            written = since()
        since()
        print("after", flush=True)
        assert since() == "after\r\n"
    assert [share for share, _ in bars(written)][-1] == "75%"
    assert bars(written)[-1][1].startswith("30/40, ETA ")
    for text in (line(20), line(30), "iteration       20 | validation loss 3.0000"):
        assert f"{text}\r\n" in written


def test_without_a_terminal_nothing_is_between(capsys: pytest.CaptureFixture[str]) -> None:
    out, errors = sys.stdout, sys.stderr
    with screens() as streams:
        assert streams == (out, errors)
    with on_screen():
        print(line(20))
    assert capsys.readouterr() == (f"{line(20)}\n", "")


def test_what_a_rank_writes_into_its_file_has_a_bar(tmp_path: Path) -> None:
    """As an agent shows it, for which a rank's output is a file."""
    out, errors = tmp_path / "stdout.log", tmp_path / "stderr.log"
    errors.touch()
    out.write_text(f"{line(20)}\n{line(30)}\n")
    with terminal() as since:
        with shown(Program(name="r", module="m", arguments=[], stdout=out, stderr=errors)):
            pass
        written = since()
    assert f"{line(30)}\r\n" in written
    assert bars(written)[-1][0] == "75%"
    assert out.read_text() == f"{line(20)}\n{line(30)}\n"
