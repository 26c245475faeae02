"""Check the nodes of this job before anything is trained on them: for `train` and `preflight`.

First a roll call, which needs no torch; then ranks on all devices. What was found goes into one
file, also where nodes are broken.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

from primus.artifacts.failure import Failure, first_cause
from primus.artifacts.preflight import Preflight, RankReport
from primus.config import memory
from primus.config.estimate import checkpoint_bytes
from primus.config.frozen import StageSettings
from primus.container.spec import Container
from primus.errors import ArtifactError, NodeError, PreemptedError
from primus.files import canonical_json
from primus.health import disk
from primus.health.measured import Measured, Needs
from primus.health.roll_call import roll_call
from primus.health.table import table
from primus.health.verdict import findings
from primus.launch import (
    JOB,
    Ranks,
    ask_for_another_job,
    platform_environment,
    run_ranks,
    thread_environment,
)
from primus.preflight_rank import LINKS, RANKS, RESULT
from primus.slurm.nodes import hosts, without

FILE = "preflight.json"
# Share of the time limit in which every node must answer the roll call, and seconds at least: it
# may wait 20 of them for a file.
_ROLL_CALL, _ROLL_CALL_SECONDS = 0.3, 30.0
# Findings of it with which no rank can start.
_FIRST = ("roll call", "disk", "shared directory")
_STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM)


def check_before_training(settings: StageSettings, settings_path: Path, attempt: Path) -> None:
    """Check the nodes where the settings ask for it; what was found stays with the attempt.

    Args:
        attempt: the directory of the attempt that is about to start.

    Raises:
        NodeError: nodes are broken. With `preflight.exclude` the job has asked for others.
        PreemptedError: the checks were told to stop.
        UnavailableError: more nodes are asked for than there are.
    """
    enabled = settings.preflight.enabled
    if not (settings.nodes > 1 if enabled is None else enabled):
        return
    found = check(settings, settings_path, attempt / "preflight", attempt.parent.parent)
    extra: list[str] = []
    if found.broken and settings.preflight.exclude:
        found, said = _exclude(settings, found, attempt.parent)
        extra.append(said)
    found.save(attempt / FILE)
    show(found)
    require_sound(found, *extra)


def show(found: Preflight) -> None:
    """Print the table, and below it what is merely slow."""
    for line in table(found):
        print(line, flush=True)
    for finding in found.findings:
        if finding.severity == "slow":
            print(f"warning: {finding}", flush=True)


def require_sound(found: Preflight, *more: str) -> None:
    """Go on only with sound nodes.

    Args:
        more: what to say below the faults.

    Raises:
        NodeError: nodes are broken; one line for each fault.
    """
    if found.broken:
        raise NodeError("\n".join([*map(str, found.broken), *more]))


def check(settings: StageSettings, settings_path: Path, directory: Path, run: Path) -> Preflight:
    """Everything that can be found out about this job's nodes.

    Args:
        directory: for the checks' own files, on the file system that is checked; removed again
            where all went well.
        run: the run's directory, whose checkpoints count as there.

    Raises:
        PreemptedError: the checks were told to stop.
        UnavailableError: more nodes are asked for than there are.
    """
    started, needs = time.time(), _needs(settings, run)
    ranks = _ranks(settings, settings_path, directory)
    ranks.command()  # before anything starts: it raises where there are too few nodes
    # What an earlier check has left would be taken for this one's.
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    seen = _call(settings, ranks.is_step, directory)
    found = findings(seen, needs)
    if not any(one.severity == "broken" and one.check in _FIRST for one in found):
        seen = _measure(ranks, seen, directory, settings.preflight.seconds)
        found = findings(seen, needs)
    if not found:
        shutil.rmtree(directory, ignore_errors=True)
    return Preflight(
        experiment=settings.experiment,
        job=os.environ.get(JOB),
        started=started,
        seconds=time.time() - started,
        hosts=list(seen.hosts),
        finished=seen.ranks is not None and seen.finished,
        nodes=list(seen.nodes),
        clocks=list(seen.clocks),
        ranks=list(seen.ranks or ()),
        links=list(seen.links),
        findings=found,
    )


def _ranks(settings: StageSettings, settings_path: Path, directory: Path) -> Ranks:
    return Ranks(
        module="primus.preflight_rank",
        arguments=[
            *("--settings", str(settings_path), "--options", canonical_json(settings.options)),
            *("--directory", str(directory)),
        ],
        nproc_per_node=settings.nproc_per_node,
        nodes=settings.nodes,
        environment=thread_environment(settings.threads_per_rank)
        | platform_environment(settings.platform)
        | settings.env.as_dict()
        # torch would end a rank whose partner does not answer, and with it what it has found.
        | {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"},
        log_directory=directory / "logs",
        container=Container.of(settings),
    )


def _needs(settings: StageSettings, run: Path) -> Needs:
    keys, peak = settings.preflight, settings.peak_tflops
    kept = len(list(run.glob("checkpoints/iter_*")))
    # What is kept, the last one and the next; a run that keeps all needs room for two at least.
    missing = max(1, (settings.keep_last or 0) + 2 - kept)
    return Needs(
        ranks_per_node=settings.nproc_per_node,
        cpu=settings.platform == "cpu",
        device_memory_gib=settings.device_memory_gib,
        rank_memory_gib=memory.fullest(settings).gib["total"],
        disk_gib=missing * checkpoint_bytes(settings) / 2**30,
        # Of the type that is measured, also where GEMMs run in fp8.
        peak_tflops=peak.bf16 if settings.bf16 or settings.fp16 else peak.fp32,
        gemm_fraction=keys.gemm_fraction,
        bandwidth_fraction=keys.bandwidth_fraction,
        min_bandwidth_inside=keys.min_bandwidth_inside,
        min_bandwidth_between=keys.min_bandwidth_between,
        min_disk_mb=keys.min_disk_mb,
    )


def _call(settings: StageSettings, step: bool, directory: Path) -> Measured:
    limit = max(_ROLL_CALL_SECONDS, settings.preflight.seconds * _ROLL_CALL)
    token = secrets.token_hex(8)
    disk.leave_token(directory, token)
    names = hosts(settings.nodes)
    answers = roll_call(
        nodes=settings.nodes, step=step, directory=directory, token=token, limit=limit
    )
    left = [one.node for one in answers.nodes if one.sees and not one.directory.error]
    return Measured(
        hosts=names,
        nodes=answers.nodes,
        unseen=disk.unseen_marks(directory, left, token),
        clocks=answers.clocks,
        seconds=limit,
    )


def _measure(ranks: Ranks, seen: Measured, directory: Path, limit: float) -> Measured:
    """Start the ranks, and read what they or, where they failed, each of them left behind."""
    end = time.monotonic() + limit
    status = run_ranks(ranks, limit=limit)
    seen = replace(seen, seconds=limit, ranks=(), finished=False)
    result = directory / RESULT
    if result.exists():
        first, second = result.read_text(encoding="utf-8").split("\n", 1)
        reports, links = RANKS.validate_json(first), LINKS.validate_json(second)
        seen = replace(seen, ranks=reports, links=links, finished=True)
    elif status in _STOPPED and time.monotonic() < end:
        raise PreemptedError("told to stop during the checks of the nodes", advanced=False)
    known = {rank.rank for rank in seen.ranks or ()}
    others = [_partial(path) for path in sorted(directory.glob("rank[0-9]*.json"))]
    seen = replace(seen, ranks=[*(seen.ranks or ()), *(r for r in others if r.rank not in known)])
    return seen if seen.finished else replace(seen, ended=_ended(ranks.log_directory))


def _partial(path: Path) -> RankReport:
    return RankReport.model_validate_json(path.read_text(encoding="utf-8"))


def _ended(logs: Path) -> tuple[str, str] | None:
    """The node of the rank that ended first, and how."""
    failures = []
    for path in sorted(logs.glob("*/failure.json")):
        try:
            failures.append(Failure.load(path))
        except ArtifactError as error:
            print(f"warning: {error}", flush=True)
    cause = first_cause(failures)
    if cause is None:
        return None
    failure, end = cause
    how = end.signal or f"status {end.status}"
    what = f"rank {end.local_rank} ended by {how}"
    return failure.host, f"{what}: {end.lines[-1]}" if end.lines else what


def _exclude(settings: StageSettings, found: Preflight, attempts: Path) -> tuple[Preflight, str]:
    """Ask for the job's next turn without the broken nodes, and say what came of it."""
    bad = sorted({finding.node for finding in found.broken})
    before = _excluded_before(found.job, attempts)
    most = settings.preflight.max_excluded
    if len({*bad, *before}) > most:
        return found, f"not excluded: that makes more than preflight.max_excluded = {most} nodes"
    exclusion = without([*before, *bad])
    if exclusion.why:
        return found, f"not excluded: {exclusion.why}"
    if not ask_for_another_job(exclude=exclusion.nodes):
        return found, "not excluded: this is no job of the pipeline on SLURM"
    return (
        found.model_copy(update={"excluded": bad}),
        f"the job goes back to the queue and leaves out {', '.join(exclusion.nodes)}",
    )


def _excluded_before(job: str | None, attempts: Path) -> list[str]:
    """Nodes that this job's earlier turns have asked to leave out."""
    earlier = [Preflight.load(path) for path in sorted(attempts.glob(f"*/{FILE}"))]
    return [node for one in earlier if job is not None and one.job == job for node in one.excluded]
