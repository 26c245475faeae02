"""One rank of two meets a damaged file: no rank waits for ever, and both load the one before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from damaged_ranks import FAULTS, LAYOUTS
from layout_run import run_ranks

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(600)]

# Of pipeline and tensor parallelism each rank reads its own file alone.
SEEN = [
    (layout, fault)
    for layout in LAYOUTS
    for fault in FAULTS
    if layout == "sharded optimizer" or "other" not in fault
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damaged")
    run_ranks("damaged_ranks.py", [str(path)])
    return path


@pytest.fixture(scope="module")
def ranks(directory: Path) -> list[dict[str, Any]]:
    """What each rank has met, by layout and fault."""
    return [json.loads((directory / f"rank-{rank}.json").read_text()) for rank in range(2)]


def files(again: Path) -> dict[str, bytes]:
    """What was loaded, as it was saved again."""
    found = {p.name: p.read_bytes() for p in (again / "iter_0000001").iterdir()}
    del found["manifest.json"]
    return found


@pytest.mark.fault(
    8,
    injected="two ranks: a bit of the file of either, a file that ends, EIO on one of them",
    observed="the file is named, both load the checkpoint before, bit for bit",
)
@pytest.mark.parametrize(("layout", "fault"), SEEN)
def test_both_ranks_load_the_one_before(
    directory: Path, ranks: list[dict[str, Any]], layout: str, fault: str
) -> None:
    first, second = (found[f"{layout}: {fault}"] for found in ranks)
    assert first["loaded"] == second["loaded"] == "iter_0000001"
    number = 1 if "second" in fault else 0
    (said,) = first["said"]
    assert second["said"] == []
    reason = {"EIO": "Input/output error", "a b": "BLAKE3", "the": "become shorter"}[fault[:3]]
    assert f"iter_0000002/__{number}_0.distcp: " in said
    assert reason in said
    again = files(directory / layout / fault / "again")
    assert again == files(directory / layout / "nothing/again")
    assert len([name for name in again if name.endswith(".distcp")]) == 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_ranks_end_where_none_is_good(ranks: list[dict[str, Any]], layout: str) -> None:
    for found in ranks:
        assert "none of 1 checkpoints is good" in found[f"{layout}: all damaged"]["error"]
        assert found[f"{layout}: nothing"] == {"loaded": "iter_0000001", "said": []}
