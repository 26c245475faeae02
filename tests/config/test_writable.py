"""A place that cannot be written to is told before anything runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from primus.config.pipeline import Pipeline
from primus.errors import UnavailableError
from primus.files import require_writable


def test_a_directory_that_is_there_or_can_be_made(tmp_path: Path) -> None:
    require_writable(tmp_path)
    require_writable(tmp_path / "output/runs")
    assert not (tmp_path / "output").exists(), "looking makes nothing"


def test_what_is_in_the_way_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "output").write_text("")
    with pytest.raises(UnavailableError, match=f"^{tmp_path}/output: is no directory. Fix: "):
        require_writable(tmp_path / "output/runs")
    (tmp_path / "link").symlink_to(tmp_path / "unmounted")
    with pytest.raises(UnavailableError, match="link: is no directory"):
        require_writable(tmp_path / "link")
    # The superuser may write wherever the file system lets anybody.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(UnavailableError, match=f"^{tmp_path}: cannot be written to. Fix: "):
        require_writable(tmp_path / "new")


@pytest.mark.fault(
    39,
    injected="the directory of all output refuses",
    observed="one line before anything is submitted",
)
def test_a_plan_looks_at_its_output(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UnavailableError, match="cannot be written to"):
        Pipeline({}, root).target("train", "llama3_8B_tiny")
