"""Measurements of nodes to findings: who is slow, who is broken, and that nobody else is named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.artifacts.preflight import (
    ClockReport,
    Disk,
    Fault,
    LinkReport,
    NodeReport,
    RankReport,
)
from primus.health.collectives import bus_bandwidth, rounds
from primus.health.measured import Measured, Needs
from primus.health.verdict import findings

GOOD = Disk(free_gib=100.0, write_mb_s=1000.0, read_mb_s=2000.0)
NEEDS = Needs(
    ranks_per_node=2,
    cpu=False,
    device_memory_gib=80.0,
    rank_memory_gib=60.0,
    disk_gib=50.0,
    peak_tflops=None,
    gemm_fraction=0.8,
    bandwidth_fraction=0.5,
    min_bandwidth_inside=None,
    min_bandwidth_between=None,
    min_disk_mb=None,
)


def node(number: int, **changes: Any) -> NodeReport:
    values: dict[str, Any] = {
        "node": number,
        "host": f"n{number}",
        "cores": 64,
        "load": 1.0,
        "memory_available_gib": 500.0,
        "python": "3.11.7",
        "commit": "abc",
        "directory": GOOD,
        "temporary": GOOD,
        "sees": True,
    }
    return NodeReport(**(values | changes))


def rank(number: int, **changes: Any) -> RankReport:
    values: dict[str, Any] = {
        "rank": number,
        "node": number // 2,
        "host": f"n{number // 2}",
        "local_rank": number % 2,
        "stage": "done",
        "device": "H100",
        "devices": 2,
        "memory_gib": 79.6,
        "free_gib": 79.0,
        "tflops": 700.0,
        "product": "same",
        "software": {"torch": "2.13"},
    }
    return RankReport(**(values | changes))


def pair_speeds(speeds: list[float], most: int = 4) -> list[LinkReport]:
    """All-reduces of nodes of which each has a speed; a pair is as fast as its slower one."""
    return [
        LinkReport(nodes=list(pair), round=number, gb_per_second=min(speeds[n] for n in pair))
        for number, pairs in enumerate(rounds(len(speeds), most), start=1)
        for pair in pairs
    ]


def healthy(nodes: int = 4) -> Measured:
    return Measured(
        hosts=[f"n{number}" for number in range(nodes)],
        nodes=[node(number) for number in range(nodes)],
        clocks=[ClockReport(node=number, low=-0.01, high=0.01) for number in range(nodes)],
        ranks=[rank(number) for number in range(2 * nodes)],
        links=[
            *(LinkReport(nodes=[n], round=0, gb_per_second=400.0) for n in range(nodes)),
            *pair_speeds([50.0] * nodes),
        ],
        seconds=300.0,
    )


def with_node(number: int, **changes: Any) -> Measured:
    seen = healthy()
    nodes = [node(n, **changes) if n == number else node(n) for n in range(4)]
    return replace(seen, nodes=nodes)


def with_rank(number: int, **changes: Any) -> Measured:
    seen = healthy()
    return replace(seen, ranks=[rank(n, **(changes if n == number else {})) for n in range(8)])


def named(seen: Measured, needs: Needs = NEEDS) -> list[tuple[str, str, str]]:
    return [(f.node, f.check, f.severity) for f in findings(seen, needs)]


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 7])
def test_nobody_is_named_among_healthy_nodes(nodes: int) -> None:
    assert named(healthy(nodes)) == []


@pytest.mark.parametrize(
    ("changes", "check", "severity"),
    [
        ({"directory": Disk(free_gib=9.0, error="/run: Read-only")}, "disk", "broken"),
        ({"directory": GOOD.model_copy(update={"free_gib": 49.0})}, "disk", "broken"),
        ({"directory": GOOD.model_copy(update={"write_mb_s": 100.0})}, "disk", "slow"),
        ({"temporary": GOOD.model_copy(update={"free_gib": 0.1})}, "TMPDIR", "broken"),
        ({"sees": False}, "shared directory", "broken"),
        ({"load": 65.0}, "load", "slow"),
        ({"commit": "other"}, "software", "broken"),
        ({"python": "3.12.0"}, "software", "broken"),
        ({"faults": [Fault(text="GPU 3: lost", severity="broken")]}, "GPU", "broken"),
        ({"faults": [Fault(text="GPU 3: hot", severity="slow")]}, "GPU", "slow"),
    ],
)
def test_what_a_node_says_of_itself(changes: dict[str, Any], check: str, severity: str) -> None:
    assert named(with_node(2, **changes)) == [("n2", check, severity)]


@pytest.mark.parametrize(
    ("changes", "check", "severity"),
    [
        ({"error": "device: torch sees 7 GPUs here"}, "device", "broken"),
        ({"memory_gib": 40.0, "free_gib": 39.5}, "device", "broken"),
        ({"free_gib": 70.0}, "device", "broken"),
        ({"stage": "gemm"}, "device", "broken"),
        ({"device": "A100", "product": "other"}, "GPU", "broken"),
        ({"product": "other"}, "product", "broken"),
        ({"repeatable": False}, "product", "broken"),
        ({"software": {"torch": "2.12"}}, "software", "broken"),
        ({"variables": {"NCCL_ALGO": "Tree"}}, "environment", "broken"),
        ({"tflops": 500.0}, "gemm", "broken"),
        ({"tflops": 600.0}, "gemm", "slow"),
    ],
)
def test_what_a_rank_finds(changes: dict[str, Any], check: str, severity: str) -> None:
    assert named(with_rank(5, **changes)) == [("n2", check, severity)]


def test_a_peak_that_is_given_is_what_counts() -> None:
    given_peak = replace(NEEDS, peak_tflops=1000.0)
    assert {name for name, *_ in named(healthy(), given_peak)} == {"n0", "n1", "n2", "n3"}
    assert named(healthy(), replace(NEEDS, peak_tflops=770.0)) == []


def test_a_finding_says_what_was_measured_what_is_needed_and_what_to_do() -> None:
    (found,) = findings(with_rank(5, tflops=500.0), NEEDS)
    assert str(found) == (
        "n2: gemm: rank 1 reaches 500 TFLOP/s, needed 80% of the median, 700. "
        "Fix: leave it out (slurm: {exclude: n2}) and tell those who run the cluster"
    )


def test_a_node_that_does_not_answer_is_named() -> None:
    seen = healthy()
    assert named(replace(seen, nodes=seen.nodes[:3], ranks=None, links=())) == [
        ("n3", "roll call", "broken")
    ]


@pytest.mark.parametrize(("offset", "bad"), [(0.9, 0), (1.2, 1), (-1.2, 1), (-0.9, 0)])
def test_a_clock_is_wrong_beyond_a_second_and_what_is_not_known_of_it(
    offset: float, bad: int
) -> None:
    clocks = [ClockReport(node=n, low=-0.05, high=0.05) for n in range(3)]
    clocks.append(ClockReport(node=3, low=offset - 0.05, high=offset + 0.05))
    assert named(replace(healthy(), clocks=clocks)) == [("n3", "clock", "broken")] * bad


def test_the_clock_that_asked_may_be_the_wrong_one() -> None:
    clocks = [ClockReport(node=0, low=-0.01, high=0.01)]
    clocks += [ClockReport(node=n, low=99.9, high=100.1) for n in range(1, 4)]
    assert named(replace(healthy(), clocks=clocks)) == [("n0", "clock", "broken")]


def test_the_node_that_starts_the_job_may_be_the_one_with_another_directory() -> None:
    nodes = [node(0), *(node(n, sees=False) for n in range(1, 4))]
    assert named(replace(healthy(), nodes=nodes)) == [("n0", "shared directory", "broken")]


def test_memory_of_a_node_counts_where_ranks_compute_there() -> None:
    seen = with_node(1, memory_available_gib=119.0)
    assert named(seen) == []
    assert named(seen, replace(NEEDS, cpu=True)) == [("n1", "memory", "broken")]


def test_a_rank_that_hangs_is_named_and_those_that_wait_for_it_are_not() -> None:
    seen = with_rank(5, stage="gemm")
    waiting = [r if r.rank == 5 else rank(r.rank, stage="inside") for r in seen.ranks or ()]
    (found,) = findings(replace(seen, ranks=waiting, links=(), finished=False), NEEDS)
    assert (found.node, found.measured) == ("n2", "rank 1 did not get beyond 'gemm'")


def test_a_node_whose_ranks_never_came_is_named() -> None:
    seen = healthy()
    (found,) = findings(replace(seen, ranks=seen.ranks[:6] if seen.ranks else ()), NEEDS)
    assert (found.node, found.measured) == ("n3", "rank 0 has not started")


def test_a_rank_that_ended_is_named_and_not_those_that_fell_with_it() -> None:
    seen = healthy()
    fallen = replace(
        seen,
        ranks=[rank(n, stage="inside") for n in range(8)],
        finished=False,
        ended=("n1", "rank 0 ended by SIGSEGV"),
        links=(),
    )
    assert named(fallen) == [("n1", "device", "broken")]


def test_a_pair_of_two_slow_nodes_names_both() -> None:
    seen = healthy(6)
    links = [LinkReport(nodes=[n], round=0, gb_per_second=400.0) for n in range(6)]
    links += pair_speeds([50, 10, 50, 10, 50, 50])
    assert named(replace(seen, links=links)) == [
        ("n1", "all-reduce between", "broken"),
        ("n3", "all-reduce between", "broken"),
    ]


def test_a_broken_link_names_the_node_that_reaches_nobody() -> None:
    links = [
        link.model_copy(update={"gb_per_second": None, "error": "timed out"})
        if 2 in link.nodes
        else link
        for link in pair_speeds([50.0] * 4)
    ]
    assert named(replace(healthy(), links=links)) == [("n2", "all-reduce between", "broken")]


def test_two_nodes_that_do_not_reach_each_other_are_both_named() -> None:
    links = [LinkReport(nodes=[0, 1], round=1, gb_per_second=None, error="timed out")]
    found = named(replace(healthy(2), links=links))
    assert [name for name, *_ in found] == ["n0", "n1"]


def test_a_single_pair_that_fails_is_told() -> None:
    links = [
        link.model_copy(update={"gb_per_second": None, "error": "timed out"})
        if link.nodes == [1, 3]
        else link
        for link in pair_speeds([50.0] * 4)
    ]
    (found,) = findings(replace(healthy(), links=links), NEEDS)
    assert found.node == "n3"
    assert "none came through with n1: timed out" in found.measured


def test_least_bandwidths_are_asked_of_every_node() -> None:
    inside = named(healthy(), replace(NEEDS, min_bandwidth_inside=401.0))
    between = named(healthy(), replace(NEEDS, min_bandwidth_between=51.0))
    assert {(check, bad) for _, check, bad in inside} == {("all-reduce inside", "broken")}
    assert {(check, bad) for _, check, bad in between} == {("all-reduce between", "broken")}
    assert len(inside) == len(between) == 4


noise = st.floats(0.93, 1.07)


@given(st.data())
def test_one_slow_node_among_noisy_ones_is_the_one_that_is_broken(data: st.DataObject) -> None:
    nodes = data.draw(st.integers(3, 12), label="nodes")
    slow = data.draw(st.integers(0, nodes - 1), label="slow")
    kind = data.draw(st.sampled_from(["gemm", "between", "inside"]), label="what is slow")
    speeds = [data.draw(noise) * (0.4 if n == slow else 1.0) for n in range(nodes)]
    seen = healthy(nodes)
    if kind == "gemm":
        seen = replace(seen, ranks=[rank(n, tflops=700 * speeds[n // 2]) for n in range(2 * nodes)])
    elif kind == "between":
        seen = replace(seen, links=pair_speeds(speeds))
    else:
        alone = [LinkReport(nodes=[n], round=0, gb_per_second=speeds[n]) for n in range(nodes)]
        seen = replace(seen, links=alone)
    broken = [name for name, _, severity in named(seen) if severity == "broken"]
    assert broken == [f"n{slow}"]


@given(st.lists(noise, min_size=2, max_size=12))
def test_none_is_broken_when_none_is_slow(speeds: list[float]) -> None:
    nodes = len(speeds)
    seen = replace(
        healthy(nodes),
        ranks=[rank(n, tflops=700 * speeds[n // 2]) for n in range(2 * nodes)],
        links=pair_speeds(speeds),
    )
    assert not [one for one in named(seen) if one[2] == "broken"]


@given(st.integers(2, 40), st.integers(1, 45))
def test_rounds_pair_every_node_with_another_one_each_time(nodes: int, most: int) -> None:
    found = rounds(nodes, most)
    pairs = [pair for one in found for pair in one]
    assert len(set(pairs)) == len(pairs)
    for one in found:
        met = [number for pair in one for number in pair]
        assert len(set(met)) == len(met) == nodes - nodes % 2
    if most >= nodes:
        assert len(pairs) == nodes * (nodes - 1) // 2


def test_bus_bandwidth_is_that_of_nccl_tests() -> None:
    # 1 GiB over 8 ranks in 5 ms: the algorithm moves 214.7 GB/s, each link 7/4 of it.
    assert bus_bandwidth(1 << 30, 8, 5e-3) == pytest.approx(375.8, rel=1e-3)
