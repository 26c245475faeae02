"""After tuning: whole training steps with and without what was found, and what they decide.

The contestants take turns, one step each: the library's own kernels, the tuned kernels, and on a
CPU the tuned kernels under the C library's malloc as it is. The last one is the process-level
candidate: ranks on CPUs start with settings of malloc (`primus.launch.platform_environment`),
tuned or not, and lose them only where whole steps are faster without, by `min_gain` in the
minimum, the median and the ratio within the rounds, in both of two runs. So a run without tuning
has the same settings as one for which nothing was measured. A `GLIBC_TUNABLES` in the user's own
`env` is used as it is, and then there is nothing to choose.

A step is one micro-batch on one rank with random tokens, and the optimizer: a training iteration
of several micro-batches has relatively more of the GEMMs than the figures here say.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from primus.artifacts.gemm import ShapesHeader, TunedHeader, load_shapes, load_tuned, save_lines
from primus.artifacts.steps import (
    DEFAULT_PROCESS,
    PLAIN_MALLOC,
    TUNED,
    TUNED_PLAIN,
    UNTUNED,
    Contestant,
    ProcessChoice,
    Ratio,
    Steps,
)
from primus.config.frozen import StageSettings
from primus.config.layout import model_parallel_ranks
from primus.errors import PrimusError
from primus.gemm.applied import activate, with_users
from primus.gemm.choose import choose
from primus.gemm.measure import RUNS, CandidateTimes
from primus.launch import platform_environment, thread_environment
from primus.shapes_dump import complete
from primus.step_race import Entry, Times, race, step_command

# Less than this is not worth the start of the processes.
LEAST_SECONDS = 20.0
_PLAIN = {"GLIBC_TUNABLES": ""}


def whole_steps(
    settings: StageSettings, shapes_path: Path, tuned_path: Path, *, deadline: float
) -> str:
    """Time whole steps, write the outcome into the header of tuned.jsonl, and tell it.

    Whatever goes wrong with the steps becomes the reason in the header; the tuning stays. With
    `gemm_tuning.step_rounds` 0, or recorded timings instead of a library, the file stays as it is.

    Args:
        settings: of the tune stage.
        shapes_path: the shapes that were tuned; its header says of which model.
        tuned_path: what the tune stage has written.
        deadline: `time.monotonic()` at which the budget ends.
    """
    if settings.gemm_backend == "replay" or settings.gemm_tuning.step_rounds == 0:
        return ""
    shapes, _ = load_shapes(shapes_path)
    header, rows = load_tuned(tuned_path)
    reason = _why_not(shapes, header, deadline)
    found: dict[str, Times] = {}
    if not reason:
        try:
            entries = _entries(settings, shapes_path, tuned_path)
            rounds = settings.gemm_tuning.step_rounds
            found = race(entries, runs=RUNS, rounds=rounds, deadline=deadline)
        except (PrimusError, OSError) as error:
            reason = str(error)
    steps = _steps(settings, found, reason)
    process = _choose(settings, steps, header.settings["min_gain"])
    header = header.model_copy(update={"steps": steps, "process": process})
    save_lines(tuned_path, header, rows)
    return describe(steps, process)


def _why_not(shapes: ShapesHeader, header: TunedHeader, deadline: float) -> str:
    """Why whole steps cannot be timed here; empty where they can."""
    if header.stopped == "disabled":
        return "gemm_tuning.enabled is false"
    if shapes.source != "record":
        return "the shapes were traced: the model may not fit into this machine"
    model = complete(StageSettings.of("shapes", shapes.model))
    try:
        ranks = model_parallel_ranks(model)
    except AttributeError:  # shapes of an older version, or made by hand
        return "the shapes do not say of which model they are"
    if ranks > 1:
        return f"{ranks} ranks hold one copy of the model"
    left = deadline - time.monotonic()
    if left < LEAST_SECONDS:
        return f"{max(left, 0):.0f} s were left of gemm_tuning.budget_minutes"
    return ""


def _entries(settings: StageSettings, shapes: Path, tuned: Path) -> dict[str, Entry]:
    threads, own = settings.threads_per_rank, settings.env.as_dict()
    plain = thread_environment(threads) | platform_environment(settings.platform)
    untuned = Entry(step_command(shapes, threads, None), plain | own)
    if settings.gemm_backend != "cpu":
        activated, _ = with_users(activate(tuned, threads=threads), own, os.environ)
        return {UNTUNED: untuned, TUNED: Entry(untuned.command, plain | own | activated)}
    command = step_command(shapes, threads, tuned)
    entries = {UNTUNED: untuned, TUNED: Entry(command, plain | own)}
    if not own.keys() & _PLAIN.keys():
        entries[TUNED_PLAIN] = Entry(command, plain | _PLAIN | own)
    return entries


def _steps(settings: StageSettings, found: Mapping[str, Times], reason: str) -> Steps:
    threads = settings.threads_per_rank
    one_thread = threads == 1 and settings.platform == "cpu"
    return Steps(
        clock="processor" if one_thread else "wall",
        threads=threads,
        contestants={
            name: Contestant(
                kernels="default" if name == UNTUNED else "tuned",
                environment=_PLAIN if name == TUNED_PLAIN else {},
                served=times.served,
                samples=times.samples,
            )
            for name, times in found.items()
        },
        reason=reason,
    )


def _choose(settings: StageSettings, steps: Steps, min_gain: float) -> ProcessChoice | None:
    """The environment of the ranks; null where nothing was timed that could decide it."""
    if steps.reason or settings.platform != "cpu":
        return None
    if TUNED_PLAIN not in steps.contestants:
        reason = "env sets GLIBC_TUNABLES"
        return ProcessChoice(candidate=DEFAULT_PROCESS, environment={}, reason=reason)
    names = {DEFAULT_PROCESS: TUNED, PLAIN_MALLOC: TUNED_PLAIN}
    times = {
        candidate: CandidateTimes(screen=runs[0], runs=runs, numerics="exact")
        for candidate, name in names.items()
        if (runs := steps.contestants[name].samples)
    }
    choice = choose(times, min_gain=min_gain, allow_lossy=False, alone="")
    plain = choice.candidate == PLAIN_MALLOC
    return ProcessChoice(
        candidate=choice.candidate, environment=_PLAIN if plain else {}, reason=choice.reason
    )


def describe(steps: Steps, process: ProcessChoice | None) -> str:
    """What the tune stage prints of the steps."""
    if steps.reason:
        return f"whole steps: not timed: {steps.reason}"
    first = steps.contestants[UNTUNED]
    lines = [f"whole steps of one micro-batch, {steps.clock} time, {len(first.all)} rounds:"]
    for name, one in steps.contestants.items():
        line = f"  {name:<20} median {one.median / 1e3:9.2f} ms, minimum {one.minimum / 1e3:9.2f}"
        lines.append(line if name == UNTUNED else f"{line}; {against(one, first, UNTUNED)}")
    if process is not None:
        lines.append(f"  ranks start with: {process.candidate} ({process.reason})")
    return "\n".join(lines)


def against(new: Contestant, old: Contestant, name: str) -> str:
    """How one compares with another, in words."""
    ratio = Ratio.of(new, old)
    told = f"{ratio.median:.3f} of {name} ({ratio.low:.3f} to {ratio.high:.3f})"
    return told if ratio.significant else f"{told}, not significant"
