"""A checkpoint of one parallel layout goes on in another with the same losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from layout_cases import RESHARDED, name_of, sources_of
from layout_run import run_ranks

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(1800)]

EVERY = [
    f"{family}: {source} -> {world} ranks, {name_of(changes)}"
    for world, families in RESHARDED.items()
    for family, layouts in families.items()
    for changes in layouts
    for source in sources_of(family, f"{world} ranks, {name_of(changes)}")
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every layout has saved, and then every layout has loaded."""
    path = tmp_path_factory.mktemp("resharded")
    for verb in ("save", "load"):
        for world in RESHARDED:
            run_ranks("reshard_ranks.py", [str(world), verb, str(path)])
    return path


@pytest.fixture(scope="module")
def curves(directory: Path) -> dict[str, Any]:
    """Losses and gradient norms after the load, by case."""
    found: dict[str, Any] = {}
    for world in RESHARDED:
        found |= json.loads((directory / f"load-{world}.json").read_text())
    return found


@pytest.mark.fault(
    42,
    injected="other parallel sizes and numbers of ranks",
    observed="the losses go on",
)
@pytest.mark.parametrize("case", EVERY)
def test_losses_go_on(directory: Path, curves: dict[str, Any], case: str) -> None:
    saved = json.loads((directory / "save-1.json").read_text())
    family = case.partition(":")[0]
    wanted = saved[f"{family}: 1 ranks, {name_of({})}"][-len(curves[case]) :]
    for found, alone in zip(curves[case], wanted, strict=True):
        assert found[0] == pytest.approx(alone[0], rel=1e-5)
        assert found[1] == pytest.approx(alone[1], rel=1e-4)
