"""Every parallel layout computes what one process computes."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layout_cases import CASES, name_of
from layout_run import run_ranks

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(1800)]

ITERATIONS = 20
EVERY = [
    pytest.param(world, family, changes, id=f"{world} ranks, {family}: {name_of(changes)}")
    for world, families in CASES.items()
    for family, layouts in families.items()
    for changes in layouts
]

Result = dict[str, Any]


class Ranks:
    """What each number of processes found, run when first asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.results = cache(self._run)

    def _run(self, world: int) -> dict[str, Result]:
        output = self._directory / f"{world}.json"
        run_ranks("layout_ranks.py", [str(world), str(ITERATIONS), str(output)])
        results: dict[str, Result] = json.loads(output.read_text())
        return results


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return Ranks(tmp_path_factory.mktemp("layouts"))


@pytest.mark.parametrize("family", sorted({family for cases in CASES.values() for family in cases}))
def test_one_process_learns(ranks: Ranks, family: str) -> None:
    losses = [loss for loss, _ in ranks.results(1)[f"{family}: alone"]["curve"]]
    assert len(losses) == ITERATIONS
    assert losses[-1] < losses[0] - 1.5


@pytest.mark.parametrize(("world", "family", "changes"), EVERY)
def test_losses_are_those_of_one_process(
    ranks: Ranks, world: int, family: str, changes: dict[str, Any]
) -> None:
    wanted = ranks.results(1)[f"{family}: alone"]
    found = ranks.results(world)[f"{family}: {name_of(changes)}"]
    if "make_vocab_size_divisible_by" not in changes:
        assert found["parameters"] == wanted["parameters"]
    for iteration, pair in enumerate(zip(found["curve"], wanted["curve"], strict=True), start=1):
        (loss, norm), (wanted_loss, wanted_norm) = pair
        assert loss == pytest.approx(wanted_loss, rel=1e-5), iteration
        assert norm == pytest.approx(wanted_norm, rel=1e-4), iteration
    tokens, wanted_tokens = np.array(found["experts"]), np.array(wanted["experts"])
    assert (tokens.sum(-1) == wanted_tokens.sum(-1)).all()
    # A token whose logits are nearly equal may choose otherwise after other roundings.
    assert np.abs(tokens - wanted_tokens).sum() <= 4
    assert wanted_tokens.any() == (family != "dense")
