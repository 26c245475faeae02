"""Numbers and ranks that go wrong in a real training: named, skipped or stopped, and reported."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
from disturbed import disturbed_run, samples_of
from reported import checks_of, page_of
from trainer_run import REPOSITORY, Bench, Run

from primus.artifacts.run import WatchRow
from primus.artifacts.tokens import SamplesManifest
from primus.trainer.outcome import read_metrics

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(600)]

TWO: dict[str, Any] = {"nproc_per_node": 2, "save_interval": 5, "train_iters": 15}
HOST = os.uname().nodename


@pytest.fixture(scope="module")
def size(bench: Bench) -> int:
    return SamplesManifest.load(bench.samples).samples["train"]


def watched(run: Run, what: str) -> list[WatchRow]:
    rows = read_metrics(run.directory)
    return [row for row in rows if isinstance(row, WatchRow) and row.what == what]


@pytest.mark.fault(
    11,
    injected="one sample's loss becomes NaN, or its gradient infinite, on the second of two ranks",
    observed="stops within the step, saves nothing; names iteration, rank, node and samples",
)
@pytest.mark.parametrize(
    ("kind", "what"), [("losses", "loss is nan"), ("gradients", "gradient norm is (nan|inf)")]
)
@pytest.mark.parametrize("overlap", [False, True])
def test_a_bad_sample_is_named_with_its_rank(
    bench: Bench, size: int, kind: str, what: str, overlap: bool
) -> None:
    bad = samples_of(size, 7, rank=1, ranks=2)
    poison = {"losses": {bad[1]: "nan"}} if kind == "losses" else {"gradients": [bad[1]]}
    run = disturbed_run(
        bench, f"named-{kind}-{overlap}", poison, **TWO, overlap_grad_reduce=overlap
    )
    status, output = run.fail()
    assert status == 1
    ids = ", ".join(map(str, bad))
    said = (
        rf"iteration 7: the {what} on rank 1 \({HOST}\); sample ids {ids}; nothing was saved\. "
        r"To go on without such a batch, set skip_bad_batches: 1"
    )
    assert re.search(f"attempt 1 failed: {said}", output), output
    assert "Traceback" not in output
    assert re.fullmatch(said, run.attempt().reason)
    assert [path.name for path in run.checkpoints()] == ["iter_0000005"]
    assert run.rows()[-1].iteration == 6


# Takes no step in iteration 7, and knows nothing of bad batches.
_WITHOUT = """
import sys
if "primus.train_rank" in sys.orig_argv:
    from primus.ranks.progress import Reporter
    say = Reporter.say
    def said(self, phase, iteration=-1):
        if phase == "update" and iteration == 6:
            from primus.trainer import loop
            real = loop.take_step
            def none(*args):
                loop.take_step = real
                return False, None
            loop.take_step = none
        say(self, phase, iteration)
    Reporter.say = said
"""


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("losses", {}),
        ("gradients", {"use_distributed_optimizer": True, "overlap_grad_reduce": True}),
        ("gradients", {"use_distributed_optimizer": False}),
        ("losses", {"fp16": True, "initial_loss_scale": 1024.0, "peak_tflops": {"bf16": 0.1}}),
        ("gradients", {"use_torch_fsdp2": True, "use_distributed_optimizer": False}),
    ],
    ids=["loss", "distributed optimizer", "plain optimizer", "fp16", "FSDP2"],
)
def test_a_skipped_batch_leaves_no_trace_in_the_weights(
    bench: Bench, size: int, kind: str, changes: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """The losses after it are those of a run that takes no step there."""
    name = request.node.callspec.id.replace(" ", "-")
    bad = samples_of(size, 7, rank=1, ranks=2)
    poison = {"losses": {bad[0]: "nan"}} if kind == "losses" else {"gradients": [bad[0]]}
    shared = TWO | changes | {"train_iters": 12}
    run = disturbed_run(bench, f"skipped-{name}", poison, **shared, skip_bad_batches=1)
    output = run.finish()
    assert len(re.findall(r"iteration 7: .*; its step is skipped, 1 of 1 that may be", output)) == 1
    hooks = bench.path / "without"
    hooks.mkdir(exist_ok=True)
    (hooks / "sitecustomize.py").write_text(_WITHOUT)
    without = bench.run(f"without-{name}", **shared)
    without.environment = {"PYTHONPATH": f"{hooks}:{REPOSITORY}"}
    without.finish()
    found, wanted = run.curve(), without.curve()
    assert list(found) == list(range(1, 13))
    if kind == "losses":
        assert found[7][0] is None
    assert {i: v for i, v in found.items() if i != 7} == {i: v for i, v in wanted.items() if i != 7}
    assert [row.skipped_batches for row in run.rows()] == [0] * 6 + [1] * 6
    assert [row.sample_checksum for row in run.rows()] == [
        row.sample_checksum for row in without.rows()
    ], "the samples count as read"


def test_the_bound_on_skipped_batches_holds_over_resumes(bench: Bench, size: int) -> None:
    first, second = samples_of(size, 7, rank=1, ranks=2), samples_of(size, 13, rank=0, ranks=2)
    poison = {"losses": {first[0]: "nan", second[1]: "inf"}}
    run = disturbed_run(bench, "bound", poison, **TWO)
    assert "iteration 7: the loss is nan" in run.fail()[1]
    run.changes["skip_bad_batches"] = 1
    for resumed in ("iter_0000005", "iter_0000010"):
        status, output = run.fail()
        assert status == 1
        assert f"resuming from {resumed}" in output
        assert re.search(
            rf"iteration 13: the loss is inf on rank 0 \({HOST}\); sample ids "
            rf"{second[0]}, {second[1]}; nothing was saved, after 1 skipped batches\. .*"
            "skip_bad_batches: 2",
            output,
        ), output
    run.changes["skip_bad_batches"] = 2
    run.finish()
    assert run.rows()[-1].skipped_batches == 2
    assert [(row.iteration, row.ranks) for row in watched(run, "skipped batch")] == [
        (7, [1]),
        (13, [0]),
    ]
    assert watched(run, "skipped batch")[1].sample_ids == second
    checks = checks_of(run)
    skipped = checks["Skipped batches"]
    assert skipped.outcome == "warning"
    assert all(f"sample ids {a}, {b}" in skipped.detail for a, b in (first, second))
    assert checks["Samples consumed"].outcome == "ok"
    assert checks["Losses"].outcome == "ok"
    assert not any(check.outcome == "failed" for check in checks.values())
    assert "iteration 7: the loss is nan on rank 1" in page_of(run), "of the attempt that stopped"


@pytest.mark.fault(
    12,
    injected="one sample's loss times five",
    observed="one warning in the log and one in the report, also just after a resume; it trains on",
)
def test_a_loss_spike_is_told_once(bench: Bench, size: int) -> None:
    scaled = {"losses": {samples_of(size, 20)[2]: 5.0}}
    run = disturbed_run(bench, "spike", scaled, train_iters=18)
    assert "loss spike" not in run.finish()
    run.changes["train_iters"] = 25
    output = run.finish()
    found = re.findall(
        r"iteration (\d+): loss spike: ([\d.]+), where ([\d.]+) is the median", output
    )
    assert [iteration for iteration, _, _ in found] == ["20"]
    assert float(found[0][1]) == pytest.approx(run.curve()[20][0], abs=1e-4)
    (row,) = watched(run, "loss spike")
    assert row.message in output
    losses = checks_of(run)["Losses"]
    assert (losses.outcome, losses.detail) == ("warning", "spike at iteration 20")


@pytest.mark.fault(
    41,
    injected="the second of two ranks sleeps in each forward pass",
    observed="rank and node stand once in log and report; without the sleep none is named",
)
def test_a_slow_rank_is_named(bench: Bench) -> None:
    changes = {"nproc_per_node": 2, "train_iters": 20, "log_interval": 4}
    run = disturbed_run(bench, "slow", {"slow_rank": 1, "seconds": 0.4}, **changes)
    output = run.finish()
    found = re.findall(rf"iteration (\d+): rank 1 on {HOST} is slow: ([\d.]+) s of its own", output)
    assert [iteration for iteration, _ in found] == ["12"]
    assert float(found[0][1]) > 0.4
    assert [row.ranks for row in watched(run, "slow rank")] == [[1]]
    ranks = checks_of(run)["Slow ranks"]
    assert ranks.outcome == "warning"
    assert f"rank 1 on {HOST} is slow" in ranks.detail
    even = bench.run("even", **changes)
    assert "is slow" not in even.finish()
    assert watched(even, "slow rank") == []
    assert "Slow ranks" not in checks_of(even)
