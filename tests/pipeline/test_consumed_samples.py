"""Which samples a run reads: the same, each once, however often it is resumed and on any ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from reported import checks_of
from trainer_run import REPOSITORY, Bench, Run

from primus.artifacts.tokens import SamplesManifest

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(600)]

# 32 samples per iteration: 30 iterations are more than one pass over the samples.
LONG: dict[str, Any] = {"global_batch_size": 32, "micro_batch_size": 4, "train_iters": 30}


@pytest.fixture(scope="module")
def undisturbed(bench: Bench) -> Run:
    run = bench.run("undisturbed", **LONG)
    run.finish()
    return run


def checksums(run: Run) -> dict[int, str]:
    """By iteration; one that ran twice must agree."""
    found: dict[int, str] = {}
    for row in run.rows():
        assert row.sample_checksum is not None
        value = row.sample_checksum
        assert found.setdefault(row.iteration, value) == value, row.iteration
    return found


def test_resumed_many_times(bench: Bench, undisturbed: Run) -> None:
    """SIGTERM, SIGKILL twice, a longer run: in the first pass, across its end, and after it."""
    size = SamplesManifest.load(bench.samples).samples["train"]
    end_of_pass = size // 32
    assert 8 < end_of_pass < 26, "the places below lie around it"
    shorter = LONG | {"train_iters": 28, "save_interval": 4}
    run = bench.run("resumed", **shorter)
    process = run.start()
    rank = run.wait_for(6, process)
    process.terminate()
    rank.resume()
    process.communicate()
    assert process.returncode == 75
    for iteration in (end_of_pass - 1, end_of_pass + 1):
        process = run.start()
        run.wait_for(iteration, process).kill()
        process.communicate()
        assert process.returncode == 1
    run.finish()
    assert run.manifest().iteration == 28
    longer = Run(bench, run.directory, None, LONG)
    longer.finish()
    assert longer.manifest().attempts == 5
    wanted = checksums(undisturbed)
    assert list(wanted) == list(range(1, 31))
    assert len(set(wanted.values())) == 30
    assert checksums(longer) == wanted
    assert longer.curve() == undisturbed.curve()
    samples = checks_of(longer)["Samples consumed"]
    assert (samples.outcome, samples.detail[:7]) == ("ok", "all 960")


@pytest.mark.parametrize(
    "layout",
    [
        {"use_distributed_optimizer": True},
        {"use_torch_fsdp2": True, "use_distributed_optimizer": False},
        {"tensor_model_parallel_size": 2},
        {"pipeline_model_parallel_size": 2},
        {"context_parallel_size": 2},
    ],
    ids=lambda layout: next(iter(layout)),
)
def test_two_ranks_read_what_one_reads(
    bench: Bench, undisturbed: Run, layout: dict[str, Any], tmp_path: Path
) -> None:
    """Data-parallel ranks share the samples; ranks that share a model count them once."""
    changes = LONG | layout | {"nproc_per_node": 2, "train_iters": 5, "eval_iters": 0}
    run = bench.run(f"two-{next(iter(layout))}", **changes)
    run.finish()
    wanted = checksums(undisturbed)
    assert checksums(run) == {iteration: wanted[iteration] for iteration in range(1, 6)}


def test_a_loader_that_repeats_a_sample_is_found(bench: Bench, undisturbed: Run) -> None:
    """What counts is what is read, not what should be."""
    run = bench.run("repeated", **LONG | {"train_iters": 4})
    hooks = bench.path / "repeating"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(_REPEAT)
    run.environment = {"PYTHONPATH": f"{hooks}:{REPOSITORY}"}
    run.finish()
    wanted, found = checksums(undisturbed), checksums(run)
    assert found[1] == wanted[1]
    assert all(found[iteration] != wanted[iteration] for iteration in (2, 3, 4))
    samples = checks_of(run)["Samples consumed"]
    assert samples.outcome == "failed"
    assert "up to iteration 2" in samples.detail


# The sampler yields the 38th sample of the run a second time, in place of the 39th.
_REPEAT = """
import sys
if "primus.train_rank" in sys.orig_argv:
    from primus.ranks.progress import Reporter
    say = Reporter.say
    def said(self, phase, iteration=-1):
        if phase == "load":
            Reporter.say = say
            from primus.trainer import batches
            real = batches._MicroBatchSampler.__iter__
            def repeated(self):
                for number, micro in enumerate(real(self)):
                    if number == 9 and self._order.__qualname__.startswith("_walk"):
                        micro = [micro[0], micro[1], micro[1], micro[3]]
                    yield micro
            batches._MicroBatchSampler.__iter__ = repeated
        say(self, phase, iteration)
    Reporter.say = said
"""
