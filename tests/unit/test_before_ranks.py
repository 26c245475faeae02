"""An attempt that ends before it has ranks leaves a record, as every other one does."""

from __future__ import annotations

from pathlib import Path

import pytest

from primus.artifacts.run import Attempt
from primus.errors import NodeError, PreemptedError, PrimusError, UnavailableError
from primus.reports.curve import resume_base
from primus.trainer.before_ranks import recorded
from primus.trainer.run_directory import new_attempt


@pytest.mark.parametrize(
    ("error", "status", "mendable"),
    [
        (NodeError("node1: disk: full\nnode2: slow"), "failed", False),
        (PreemptedError("told to stop", advanced=False), "preempted", False),
        (UnavailableError("nodes = 2: there is one"), "failed", True),
    ],
)
def test_why_it_ended_is_kept_and_goes_on(
    tmp_path: Path, error: PrimusError, status: str, mendable: bool
) -> None:
    attempt = new_attempt(tmp_path)
    with pytest.raises(type(error)), recorded(attempt, 6):
        raise error
    found = Attempt.load(attempt / "attempt.json")
    assert (found.status, found.mendable, found.world_size) == (status, mendable, 6)
    assert found.reason == str(error).replace("\n", "; ")
    assert (found.resumed_from, found.last_iteration) == (None, 0)
    assert found.finished is not None


def test_it_is_taken_for_one_that_began_where_the_run_is(tmp_path: Path) -> None:
    """Otherwise a report would take what was trained before for lost."""
    (tmp_path / "checkpoints/iter_0000040").mkdir(parents=True)
    attempt = new_attempt(tmp_path)
    with pytest.raises(NodeError), recorded(attempt, 2):
        raise NodeError("node1: slow")
    found = Attempt.load(attempt / "attempt.json")
    assert (found.first_iteration, found.last_iteration, resume_base(found)) == (40, 40, 40)


def test_ranks_write_their_own(tmp_path: Path) -> None:
    attempt = new_attempt(tmp_path)
    with recorded(attempt, 1):
        pass
    assert not (attempt / "attempt.json").exists()
