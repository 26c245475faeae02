"""A short campaign: a few faults of different kinds on one training, and what it must print."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from campaign_faults import KINDS as ALL
from campaign_faults import planned

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(1200)]

CAMPAIGN = Path(__file__).with_name("campaign.py")
KINDS = ["full disk", "flipped bit", "killed Snakemake"]


@pytest.mark.fault(
    1,
    5,
    8,
    21,
    injected="a short campaign on one training of two ranks: a full disk, a flipped bit after all "
    "ranks were killed, a killed Snakemake",
    observed="finished, bit-identical, no fault over its bound, one writer, no orphan",
)
def test_a_short_campaign(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(CAMPAIGN), "--faults", str(len(KINDS)), "--seed", "4"]
    command += ["--interval", "5", "--pace", "0.1", "--json", str(figures)]
    for kind in KINDS:
        command += ["--kind", kind]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=CAMPAIGN.parents[2]
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert done.stdout.endswith("all holds\n")
    found = json.loads(figures.read_text())
    possible = [kind for kind in KINDS if kind not in found["left_out"]]
    fell = [fault["fault"] for fault in found["faults"]]
    assert fell == found["plan"]
    assert set(fell) == set(possible)
    assert all(fault["lost"] <= fault["bound"] for fault in found["faults"])
    assert found["finished"]
    assert 0 < found["goodput"] < 1
    assert found["refusals"] >= 1, "a second start beside living ranks"
    assert all(question["holds"] for question in found["questions"])


def test_a_plan_is_the_same_for_the_same_seed() -> None:
    def plan(seed: int, *, mount: bool = True) -> list[str]:
        rng = random.Random(seed)
        return [kind.name for kind in planned(len(ALL), rng, names=[], mount=mount)]

    assert plan(1) == plan(1) != plan(2)
    assert sorted(plan(1)) == sorted(kind.name for kind in ALL), "every kind once"
    assert "full disk" not in plan(1, mount=False)
