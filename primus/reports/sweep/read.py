"""Reading the points of a sweep: those that are trained, on their way, or not there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from primus.artifacts.run import read_attempts
from primus.config.extent import recorded
from primus.config.paths import artifact
from primus.config.pipeline import Plan
from primus.config.sweep import PlannedSweep
from primus.config.sweep_file import Point
from primus.errors import ArtifactError
from primus.reports.comparison.find import Found, has_rows
from primus.reports.comparison.read import Run, read_run
from primus.reports.comparison.warnings import state_of


@dataclass(frozen=True, kw_only=True)
class Swept:
    """A point and what its run has come to.

    Attributes:
        run: null where it has logged nothing, or cannot be read.
        finished: it went as far as the sweep wants it to.
    """

    point: Point
    plan: Plan
    directory: Path
    run: Run | None
    state: str
    finished: bool

    @property
    def key(self) -> str:
        """Of its run; no two points have one."""
        return self.plan.stages["train"].key


def read_points(planned: PlannedSweep, root: Path = Path()) -> list[Swept]:
    """Every point, in the order of the file; none that is missing or damaged is an error."""
    return [_read(point, plan, root) for point, plan in planned.points]


def _read(point: Point, plan: Plan, root: Path) -> Swept:
    made = plan.stages["train"]
    path = root / artifact(made)
    run, state = _run(point, path.parent, made.owner, made.key)
    finished = run is not None and recorded(made.extent, path) == made.extent
    if run is not None and not finished:
        last = run.curve.train[-1].iteration
        state = f"{state}, iteration {last} of {plan.settings.train_iters}"
    return Swept(
        point=point,
        plan=plan,
        directory=path.parent,
        run=run,
        state="finished" if finished else state,
        finished=finished,
    )


def _run(point: Point, directory: Path, experiment: str, key: str) -> tuple[Run | None, str]:
    if not has_rows(directory):
        attempts = read_attempts(directory)
        if not attempts:
            return None, "not begun"
        return None, f"attempt {attempts[-1].number} {attempts[-1].status}: {attempts[-1].reason}"
    found = Found(label=point.label, directory=directory, experiment=experiment, key=key)
    try:
        run = read_run(found)
    except ArtifactError as error:
        return None, f"cannot be read: {error}"
    return run, state_of(run)
