"""The checkpoint of another run from which a run starts, and starts again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from primus.errors import ArtifactError, UserError
from primus.trainer.started_from import FILE, choose, note


def saved(run: Path, iteration: int) -> Path:
    path = run / f"checkpoints/iter_{iteration:07d}"
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(f"iteration {iteration}")
    return path


def test_the_newest_one_at_the_first_start_stays_the_one(tmp_path: Path) -> None:
    other, own = tmp_path / "other", tmp_path / "own"
    own.mkdir()
    saved(other, 2)
    newest = saved(other, 4)
    assert choose(other, own) == choose(other / "checkpoints", own) == newest
    note(own, newest)
    later = saved(other, 6)
    assert choose(other, own) == newest
    note(own, later)
    assert choose(other, own) == newest
    # Who has noted nothing takes the newest.
    assert choose(other, None) == later
    assert choose(newest, None) == newest


@pytest.mark.parametrize("how", ["is not there any more", "has changed since"])
def test_one_that_is_no_longer_what_it_was_is_not_replaced_by_another(
    tmp_path: Path, how: str
) -> None:
    other, own = tmp_path / "other", tmp_path / "own"
    own.mkdir()
    first = saved(other, 2)
    note(own, first)
    saved(other, 4)
    if how == "has changed since":
        (first / "manifest.json").write_text("another")
    else:
        shutil.rmtree(first)
    with pytest.raises(
        UserError, match=rf"load_checkpoint = \S*other: .*iter_0000002, which {how}"
    ):
        choose(other, own)


def test_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no checkpoint\. Fix: name a run or"):
        choose(tmp_path, None)
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ArtifactError, match=FILE):
        choose(tmp_path, tmp_path)
