"""Writing files whole, under the user's umask; reading JSON from outside."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from primus.files import atomic_write, is_older, parse_json, replace_directory

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(("mask", "mode"), [("022", 0o644), ("027", 0o640), ("077", 0o600)])
def test_the_users_umask_decides_who_reads_a_file(tmp_path: Path, mask: str, mode: int) -> None:
    program = (
        f"import os; os.umask(0o{mask})\n"
        "from pathlib import Path\n"
        "from primus.files import atomic_write\n"
        "from primus.trainer.lease import lease\n"
        "with atomic_write('made/result.json') as stream: stream.write('{}')\n"
        "with lease(Path('run')): pass\n"
    )
    subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        check=True,
    )
    files = {path.name: path for path in tmp_path.rglob("*") if path.is_file()}
    assert sorted(files) == ["result.json", "writer.000001.json"]
    for path in files.values():
        assert stat.S_IMODE(path.stat().st_mode) == mode, path


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(TypeError), atomic_write(path) as stream:
        stream.write("new" + 1)  # type: ignore[operator]
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, '"\\ud800"', '{"a": "\\uDfff"}', b"\xff", "9" * 5000]
)
def test_what_is_no_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


def test_whole_characters_pass() -> None:
    assert parse_json('"\\ud83d\\ude00 é"') == "😀 é"


def test_a_directory_set_aside_by_a_killed_process_is_the_old_one(tmp_path: Path) -> None:
    """Killed between two renames: what others had put there is under the hidden name only."""
    (tmp_path / ".hf.old").mkdir()
    (tmp_path / ".hf.old/notes.txt").write_text("a note")
    (tmp_path / ".hf.old/config.json").write_text("old")
    (tmp_path / "new").mkdir()
    (tmp_path / "new/config.json").write_text("new")
    replace_directory(tmp_path / "new", tmp_path / "hf", superseded=lambda name: False)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    texts = {path.name: path.read_text() for path in (tmp_path / "hf").iterdir()}
    assert texts == {"notes.txt": "a note", "config.json": "new"}


def test_what_is_older_than_something_else(tmp_path: Path) -> None:
    made, early, late = (tmp_path / name for name in ("made", "early", "late"))
    for number, path in enumerate((early, made, late)):
        path.touch()
        os.utime(path, ns=(number, number))
    assert is_older(made, [early, late])
    assert not is_older(made, [early, tmp_path / "none"])
    assert not is_older(tmp_path / "none", [late])
