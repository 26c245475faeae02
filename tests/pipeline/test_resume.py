"""The trainer as a process: it learns, and after any end it goes on as if nothing had happened."""

from __future__ import annotations

import os
import re
from pathlib import Path

import psutil
import pytest
from reported import checks_of
from trainer_run import REPOSITORY, Bench, Run

from primus.artifacts.run import StartedFrom
from primus.errors import ArtifactError
from primus.trainer.checkpoint_directory import verify

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(600)]

LAST = 50


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), compiled=True)


@pytest.fixture(scope="module")
def undisturbed(bench: Bench) -> Run:
    """A run from start to end in one attempt; tests only read it."""
    run = bench.run("undisturbed")
    run.finish()
    return run


def flip_a_bit(checkpoint: Path) -> Path:
    path = max(checkpoint.rglob("*.distcp"), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    return path


def test_it_learns_and_leaves_a_verified_manifest(undisturbed: Run) -> None:
    curve = undisturbed.curve()
    assert list(curve) == list(range(1, LAST + 1))
    assert curve[LAST][0] < curve[1][0] - 0.5
    manifest = undisturbed.manifest()
    assert manifest.iteration == LAST
    assert manifest.loss == curve[LAST][0]
    assert manifest.validation_loss is not None
    assert manifest.consumed_tokens == LAST * 4 * 32
    assert [c.iteration for c in manifest.checkpoints] == [10, 20, 30, 40, 50]
    assert manifest.warnings == []
    for checkpoint in undisturbed.checkpoints():
        verify(checkpoint, manifest.key)


def test_a_finished_run_is_not_started_again(undisturbed: Run) -> None:
    before = undisturbed.manifest()
    undisturbed.finish()
    assert len(list(undisturbed.directory.glob("attempts/*"))) == 1
    assert undisturbed.manifest().loss == before.loss


@pytest.mark.fault(
    1,
    23,
    injected="SIGKILL at iteration 30; a second start beside it",
    observed="SIGKILL is named, the second start refused, the rerun ends on the same curve",
)
def test_a_killed_rank(bench: Bench, undisturbed: Run) -> None:
    """Kill -9 at 60 %: said as such; the next start goes on from the newest checkpoint."""
    run = bench.run("killed")
    process = run.start()
    rank = run.wait_for(30, process)
    second = bench.run("killed")
    status, output = second.fail()
    assert status == 2
    assert re.search(rf"error: .*process {rank.pid} on .*is writing to this run.*Fix:", output)
    rank.kill()
    output, _ = process.communicate()
    assert process.returncode == 1
    assert re.search(
        r"attempt 1 failed: rank 0 on \S+ was ended by SIGKILL after iteration", output
    )
    assert "run the same command again to go on" in output
    assert "Traceback" not in output
    assert run.attempt().status == "failed"
    newest = run.checkpoints()[-1].name
    assert f"resuming from {newest}" in run.finish()
    assert run.attempt().resumed_from == newest
    assert run.curve() == undisturbed.curve()
    assert run.manifest().attempts == 2


@pytest.mark.fault(
    13,
    injected="SIGTERM to the stage",
    observed="saved, status 75, nothing runs twice",
)
def test_a_request_to_stop(bench: Bench, undisturbed: Run) -> None:
    """SIGTERM: the iteration ends, the state is saved, and the stage fails and says why."""
    run = bench.run("stopped")
    process = run.start()
    rank = run.wait_for(23, process)
    process.terminate()
    rank.resume()
    output, _ = process.communicate()
    assert process.returncode == 75
    assert "preempted: stopped by a signal, state saved" in output
    assert "Traceback" not in output
    assert run.attempt().status == "preempted"
    reached = run.attempt().last_iteration
    assert 23 <= reached < LAST
    assert run.checkpoints()[-1].name == f"iter_{reached:07d}"
    assert f"resuming from iter_{reached:07d}" in run.finish()
    assert [row.iteration for row in run.rows()] == list(range(1, LAST + 1)), "nothing ran twice"
    assert run.curve() == undisturbed.curve()


def test_raising_train_iters_goes_on(bench: Bench, undisturbed: Run) -> None:
    """The length of the schedule is given, so 20 iterations and 30 more are 50."""
    run = bench.run("short", train_iters=20)
    run.finish()
    assert run.manifest().iteration == 20
    assert run.manifest().key == undisturbed.manifest().key
    longer = bench.run("short")
    assert "resuming from iter_0000020" in longer.finish()
    assert longer.curve() == undisturbed.curve()
    assert longer.manifest().iteration == LAST


# Stands in for wandb: it waits for ever when it is asked for a run, and again when Python ends.
STUCK = """
import atexit, threading
from primus.trainer import trackers
trackers._CLOSE_SECONDS = 1.0
atexit.register(threading.Event().wait)
Settings = dict
def init(**given):
    threading.Event().wait()
"""


def test_trackers_that_hang_or_fail_change_nothing(
    bench: Bench, undisturbed: Run, tmp_path: Path
) -> None:
    (tmp_path / "wandb.py").write_text(STUCK)
    (tmp_path / "mlflow.py").write_text("raise OSError('broken')\n")
    run = bench.run("tracked", train_iters=12, wandb_project="x", mlflow_experiment_name="y")
    run.environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    output = run.finish()
    assert output.count("wandb: it has not ended for 1 s. Training goes on without it") == 1
    assert output.count("mlflow: OSError: broken. Training goes on without it") == 1
    assert run.attempt().status == "completed"
    assert run.curve() == {n: row for n, row in undisturbed.curve().items() if n <= 12}


@pytest.mark.fault(
    8,
    injected="one bit of the newest checkpoint",
    observed="a warning that names it, the one before loads, the damaged one is kept aside",
)
def test_a_flipped_bit_falls_back_to_the_checkpoint_before(undisturbed: Run) -> None:
    run = undisturbed.copy("flipped", until=LAST)
    flip_a_bit(run.checkpoints()[-1])
    with pytest.raises(ArtifactError):
        verify(run.checkpoints()[-1], undisturbed.manifest().key)
    output = run.finish()
    assert re.search(r"skipping a damaged checkpoint: .*iter_0000050", output)
    assert "resuming from iter_0000040" in output
    assert run.curve() == undisturbed.curve()
    assert [c.iteration for c in run.manifest().checkpoints] == [10, 20, 30, 40, 50]
    assert (run.directory / "checkpoints/damaged-iter_0000050-0").is_dir(), "kept for a person"


@pytest.mark.fault(
    10,
    injected="one bit of every checkpoint",
    observed="status 74, nothing is overwritten",
)
def test_no_good_checkpoint_is_no_silent_start_from_zero(undisturbed: Run) -> None:
    run = undisturbed.copy("all-bad", until=20)
    for checkpoint in run.checkpoints():
        flip_a_bit(checkpoint)
    status, output = run.fail()
    assert status == 74
    assert "none of 2 checkpoints is good" in output
    assert "Traceback" not in output
    assert len(run.checkpoints()) == 2
    assert run.rows()[-1].iteration == 20


@pytest.mark.fault(
    11,
    injected="a learning rate of 1e30",
    observed="stops within the step, names the iteration, saves nothing",
)
def test_numbers_that_go_wrong_are_not_saved(bench: Bench) -> None:
    run = bench.run("diverged", lr=1e30, lr_warmup_iters=0, save_interval=1, clip_grad=0.0)
    status, output = run.fail()
    assert status == 1
    found = re.search(r"failed: iteration (\d+): the (loss|gradient norm) is (nan|inf)", output)
    assert found, output
    assert "nothing was saved" in output
    wrong = int(found.group(1))
    assert wrong > 1
    assert [c.name for c in run.checkpoints()] == [f"iter_{i:07d}" for i in range(1, wrong)]
    assert run.attempt().status == "failed"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # Without the program, or without its daemon or the image.
        (
            {"container": {"runtime": "docker", "image": "none"}},
            r"container\.(runtime = docker|image = none): .*Fix: ",
        ),
        ({"hardware": "h200"}, "platform = cuda: torch .* sees no GPU here. Fix: "),
    ],
)
def test_what_this_machine_cannot_do_is_said(
    bench: Bench, changes: dict[str, object], message: str
) -> None:
    run = bench.run(f"refused-{next(iter(changes))}", **changes)
    _, output = run.fail()
    assert re.search(f"error: .*{message}", output)
    assert "Traceback" not in output
    assert not run.checkpoints()


@pytest.mark.fault(
    21,
    injected="SIGKILL to what started the ranks",
    observed="no process is left behind, the rerun resumes",
)
def test_two_ranks_that_lose_their_starter(bench: Bench, undisturbed: Run) -> None:
    """Kill -9 of primus.train: no rank stays; two ranks go on to the losses of one."""
    run = bench.run("two-ranks", nproc_per_node=2)
    process = run.start()
    rank = run.wait_for(30, process)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 3, "an agent and two ranks"
    process.kill()
    process.wait()
    rank.resume()
    _, alive = psutil.wait_procs(family, timeout=90)
    assert not alive
    assert process.stdout is not None
    process.stdout.close()
    run.finish()
    wanted = undisturbed.curve()
    found = run.curve()
    assert list(found) == list(wanted)
    for iteration, (loss, lr, norm) in found.items():
        assert loss == pytest.approx(wanted[iteration][0], rel=1e-5), iteration
        assert lr == wanted[iteration][1]
        assert norm == pytest.approx(wanted[iteration][2], rel=1e-4), iteration
    assert run.manifest().checkpoints[-1].iteration == LAST


def test_another_layout_goes_on_from_a_run(bench: Bench, undisturbed: Run) -> None:
    """`load_checkpoint`: two tensor-parallel ranks go on from what one rank saved."""
    start = undisturbed.copy("first-half", until=20)
    changes = {"nproc_per_node": 2, "tensor_model_parallel_size": 2, "train_iters": 30}
    run = bench.run("tensor-parallel", load_checkpoint=str(start.directory), **changes)
    assert "at iteration 20" in run.finish()
    noted = StartedFrom.load(run.directory / "started_from.json").checkpoint
    assert Path(noted) == start.directory / "checkpoints/iter_0000020"
    wanted = undisturbed.curve()
    found = run.curve()
    assert list(found) == list(range(21, 31))
    for iteration, (loss, lr, _) in found.items():
        assert loss == pytest.approx(wanted[iteration][0], rel=1e-5), iteration
        assert lr == wanted[iteration][1]
    samples = checks_of(run)["Samples consumed"]
    assert (samples.outcome, samples.detail[:15]) == ("ok", "the last 36 as ")
    nowhere = bench.run("nowhere", load_checkpoint=str(bench.path / "none"))
    status, output = nowhere.fail()
    assert status == 2
    assert re.search(r"error: load_checkpoint = .*none: holds no checkpoint. Fix: ", output)
