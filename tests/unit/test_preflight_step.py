"""What a training does with the verdict on its nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from primus import preflight_step
from primus.artifacts.preflight import Finding, Preflight
from primus.config.frozen import StageSettings
from primus.errors import NodeError
from primus.launch import AGAIN, JOB
from primus.preflight_step import check_before_training
from primus.slurm.nodes import Exclusion


def finding(node: str, severity: Any = "broken") -> Finding:
    return Finding(
        node=node, check="gemm", severity=severity, measured="1", needed="2", fix="mend it"
    )


def settings(nodes: int = 2, **keys: Any) -> StageSettings:
    known = {"enabled": None, "exclude": False, "max_excluded": 2}
    return StageSettings.of("train", {"nodes": nodes, "preflight": known | keys})


class Nodes:
    """What the checks find, and what SLURM says of leaving nodes out."""

    def __init__(self, path: Path) -> None:
        self.run = path
        self.again = path / "again"
        self.findings: list[Finding] = []
        self.exclusion: Exclusion | None = None
        self.asked: list[str] = []
        self.checks = 0

    def check(self, *_: Any) -> Preflight:
        self.checks += 1
        return Preflight(
            experiment="e",
            job="7",
            started=0.0,
            seconds=1.0,
            hosts=["n1", "n2", "n3", "n4"],
            finished=True,
            nodes=[],
            clocks=[],
            ranks=[],
            links=[],
            findings=self.findings,
        )

    def without(self, bad: list[str]) -> Exclusion:
        self.asked = bad
        return self.exclusion or Exclusion(tuple(bad))

    def train(self, **keys: Any) -> Preflight:
        """The next attempt's checks; its record."""
        number = len(list(self.run.glob("attempts/*"))) + 1
        attempt = self.run / f"attempts/{number:03d}"
        attempt.mkdir(parents=True)
        check_before_training(settings(**keys), Path("settings.json"), attempt)
        return Preflight.load(attempt / "preflight.json")


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nodes:
    found = Nodes(tmp_path)
    monkeypatch.setattr(preflight_step, "check", found.check)
    monkeypatch.setattr(preflight_step, "without", found.without)
    monkeypatch.setenv(JOB, "7")
    monkeypatch.setenv(AGAIN, str(found.again))
    return found


@pytest.mark.parametrize(
    ("number", "enabled", "checked"),
    [(1, None, 0), (2, None, 1), (1, True, 1), (2, False, 0)],
)
def test_several_nodes_are_checked_unless_it_is_said_otherwise(
    nodes: Nodes, number: int, enabled: bool | None, checked: int
) -> None:
    attempt = nodes.run / "attempts/001"
    attempt.mkdir(parents=True)
    keys = settings(nodes=number, enabled=enabled)
    check_before_training(keys, Path("settings.json"), attempt)
    assert nodes.checks == checked == len(list(attempt.glob("preflight.json")))


def test_a_slow_node_is_told_and_trained_on(
    nodes: Nodes, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes.findings = [finding("n2", "slow")]
    assert nodes.train(exclude=True).findings == nodes.findings
    said = capsys.readouterr().out
    assert "warning: n2: gemm: 1, needed 2. Fix: mend it" in said
    assert [line.split()[:2] for line in said.splitlines()][1:5] == [
        ["n1", "ok"],
        ["n2", "slow"],
        ["n3", "ok"],
        ["n4", "ok"],
    ]


def test_broken_nodes_end_the_training_and_the_job_stays_as_it_is(nodes: Nodes) -> None:
    nodes.findings = [finding("n2"), finding("n3")]
    with pytest.raises(NodeError) as raised:
        nodes.train()
    assert str(raised.value).splitlines() == [
        "n2: gemm: 1, needed 2. Fix: mend it",
        "n3: gemm: 1, needed 2. Fix: mend it",
    ]
    assert not nodes.again.exists()


def test_broken_nodes_are_left_out_in_the_jobs_next_turn_and_stay_out(nodes: Nodes) -> None:
    nodes.findings = [finding("n2")]
    with pytest.raises(NodeError, match="leaves out n2"):
        nodes.train(exclude=True)
    assert nodes.again.read_text() == "n2"
    nodes.findings = [finding("n3")]
    with pytest.raises(NodeError, match="leaves out n2, n3"):
        nodes.train(exclude=True)
    assert (nodes.asked, nodes.again.read_text()) == (["n2", "n3"], "n2,n3")


def test_only_so_many_nodes_are_left_out(nodes: Nodes) -> None:
    for number in (1, 2):
        nodes.findings = [finding(f"n{number}")]
        with pytest.raises(NodeError, match="goes back to the queue"):
            nodes.train(exclude=True)
    nodes.again.unlink()
    nodes.findings = [finding("n3")]
    with pytest.raises(NodeError, match=r"not excluded: .* preflight.max_excluded = 2 nodes"):
        nodes.train(exclude=True)
    assert not nodes.again.exists()


def test_a_partition_without_other_nodes_is_named(nodes: Nodes) -> None:
    nodes.findings, nodes.exclusion = [finding("n2")], Exclusion((), "there are no others")
    with pytest.raises(NodeError, match="not excluded: there are no others"):
        nodes.train(exclude=True)
    assert not nodes.again.exists()
