"""A sweep whose points are loaded: each is the experiment as `--config` would have it."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from primus.config.identity import digest_of, identities
from primus.config.load import Resolved, load
from primus.config.merge import merge
from primus.config.paths import RUNS, SWEEP, artifact
from primus.config.pipeline import Plan
from primus.config.schema.keys import STAGES, Stage
from primus.config.sweep_file import Point, Sweep, flat, overlap, read_sweep
from primus.config.values import from_command_line
from primus.errors import ConfigError, Problem


@dataclass(frozen=True, kw_only=True)
class PlannedSweep:
    """A sweep and the plan of each point, in the order of the file."""

    sweep: Sweep
    plans: Sequence[Plan]

    @property
    def points(self) -> Iterator[tuple[Point, Plan]]:
        """Each point and its plan."""
        return zip(self.sweep.points, self.plans, strict=True)

    @cached_property
    def digest(self) -> str:
        """Hash of the runs, how far each shall go, and how they are told apart."""
        found = [
            [point.label, plan.stages["train"].owner, plan.stages["train"].digest]
            for point, plan in self.points
        ]
        return digest_of({"points": sorted(found)})

    @property
    def page(self) -> str:
        """Path of the sweep's report."""
        return SWEEP.format(sweep=self.sweep.name, digest=self.digest)

    def made(self, stage: Stage) -> list[str]:
        """What a stage makes for each point."""
        return [artifact(plan.stages[stage]) for plan in self.plans]

    def jobs(self) -> dict[Stage, int]:
        """How many jobs each stage takes for all points together."""
        made = {stage: set[str]() for stage in STAGES}
        for plan in self.plans:
            for stage in plan.stages_of("train"):
                made[stage].add(artifact(plan.stages[stage]))
        return {stage: len(paths) for stage, paths in made.items() if paths}

    def submitted(self, groups: Mapping[str, str]) -> dict[str, int]:
        """How many jobs a cluster gets for all points together, by stage or group of stages.

        Args:
            groups: by stage, as in Snakemake: members that build on each other are one job. Those
                of one point do; points that share a member are in the same job.
        """
        jobs: dict[str, list[set[str]]] = {}
        for plan in self.plans:
            own: dict[str, set[str]] = {}
            for stage in plan.stages_of("train"):
                made = artifact(plan.stages[stage])
                own.setdefault(groups.get(stage, stage), set()).add(made)
            for name, together in own.items():
                others = jobs.get(name, [])
                shared = [other for other in others if not other.isdisjoint(together)]
                apart = [other for other in others if other.isdisjoint(together)]
                jobs[name] = [*apart, together.union(*shared)]
        return {name: len(found) for name, found in jobs.items()}

    def resources(self) -> dict[str, Mapping[str, Any]]:
        """What each stage asks of a cluster; of points that ask for something else, theirs too."""
        asked: dict[str, Mapping[str, Any]] = {}
        for point, plan in self.points:
            for stage in plan.stages_of("train"):
                wanted = plan.resources(stage)
                if asked.setdefault(stage, wanted) != wanted:
                    asked[f"{stage} of {point.label}"] = wanted
        return asked


def plan_sweep(
    name: str, overrides: Mapping[str, Any], root: Path, stages: Collection[Stage]
) -> PlannedSweep:
    """Read a sweep, load its points and look for points that are one run.

    Args:
        overrides: of the command line.
        stages: see `load`.

    Raises:
        ConfigError: see `read_sweep`, `given_by`, `load_points` and `refuse_equal_points`.
    """
    sweep = read_sweep(name, root)
    given = given_by(sweep, overrides)
    loaded = load_points(sweep, given, root, stages)
    plans = [
        Plan(one, identities(one.settings), values)
        for one, values in zip(loaded, given, strict=True)
    ]
    planned = PlannedSweep(sweep=sweep, plans=plans)
    refuse_equal_points(planned)
    return planned


def given_by(sweep: Sweep, overrides: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The overrides of each point, those of the command line among them.

    Raises:
        ConfigError: the command line sets what the sweep varies.
    """
    given = from_command_line(overrides)
    twice = [
        Problem(
            file="--config",
            key=key,
            value="",
            why=f"{sweep.file} sets it for each point",
            fix="remove it here, or there",
        )
        for key, _ in flat(given)
        if any(overlap(key, other) for point in sweep.points for other in point.values)
    ]
    if twice:
        raise ConfigError(twice)
    return [merge(given, point.overrides) for point in sweep.points]


def load_points(
    sweep: Sweep, overrides: Sequence[Mapping[str, Any]], root: Path, stages: Collection[Stage]
) -> list[Resolved]:
    """Load every point.

    Args:
        overrides: of each point, see `given_by`.
        stages: see `load`.

    Raises:
        ConfigError: every mistake of every point; each names the point, the key and the file.
    """
    loaded: list[Resolved] = []
    found: defaultdict[Problem, list[str]] = defaultdict(list)
    for point, given in zip(sweep.points, overrides, strict=True):
        try:
            loaded.append(load(sweep.experiment, given, root=root, stages=stages))
        except ConfigError as error:
            for problem in error.problems:
                found[_placed(problem, point)].append(point.label)
    if found:
        raise ConfigError([_with_points(*item, sweep) for item in found.items()])
    return loaded


def _placed(problem: Problem, point: Point) -> Problem:
    """A problem of the command line is one of the sweep's file, where the key stands there."""
    if problem.file != "--config":
        return problem
    for key, where in point.where.items():
        if overlap(problem.key, key):
            return dataclasses.replace(problem, file=where)
    return problem


def _with_points(problem: Problem, labels: Sequence[str], sweep: Sweep) -> Problem:
    more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
    why = f"{problem.why} (in the point {labels[0]}{more} of {sweep.file})"
    return dataclasses.replace(problem, why=why)


def refuse_equal_points(planned: PlannedSweep) -> None:
    """Look for points that would be trained in one directory.

    Raises:
        ConfigError: there are some; both points are named, and in what they differ all the same.
    """
    seen: dict[str, tuple[Point, Plan]] = {}
    found = []
    for point, plan in planned.points:
        key = plan.stages["train"].key
        if key in seen:
            found.append(_equal(*seen[key], point, plan, planned.sweep.file))
        else:
            seen[key] = (point, plan)
    if found:
        raise ConfigError(found)


def _equal(first: Point, before: Plan, point: Point, plan: Plan, file: str) -> Problem:
    names = [name for name in point.values if point.values[name] != first.values.get(name)]
    made, old = plan.stages["train"], before.stages["train"]
    fix = "remove one of the two"
    if made.extent != old.extent:
        differ = ", ".join(name for name in made.extent if made.extent[name] != old.extent[name])
        how = f"they differ in how far that one run goes ({differ})"
        fix += ", or give each a schedule of its own length (lr_decay_iters)"
    elif names:
        how = f"{', '.join(names)} changes nothing of what is trained"
    else:
        how = "they have the same values"
    why = f"the points {first.label} and {point.label} are one run, {made.key}: {how}"
    where = next((point.where[name] for name in names or point.where), file)
    return Problem(file=where, key=", ".join(names), value="", why=why, fix=fix)


def lines(
    planned: PlannedSweep, runs: Path = RUNS, groups: Mapping[str, str] | None = None
) -> list[str]:
    """What the sweep takes, for the dry run: points, jobs, and device-hours.

    Args:
        runs: where earlier runs say how long an iteration takes.
        groups: as in `PlannedSweep.submitted`; None: no cluster gets the jobs.
    """
    sweep, points = planned.sweep, len(planned.plans)
    jobs = planned.jobs()
    varied = f", {', '.join(sweep.varied)} varied" if sweep.varied else ""
    shared = [stage for stage, count in jobs.items() if count < points]
    text = ", ".join(f"{count} {stage}" for stage, count in jobs.items())
    text += f" (points share {', '.join(shared)})" if shared else ""
    said = [
        f"sweep {sweep.name}: {points} point{'s' * (points > 1)} of {sweep.experiment}{varied}",
        f"jobs where nothing is made yet: {text}",
    ]
    if groups is not None:
        said.append(f"submitted as {_submitted(planned, groups)}")
    return [*said, _hours(planned, runs)]


def _submitted(planned: PlannedSweep, groups: Mapping[str, str]) -> str:
    jobs = planned.submitted(groups)
    members = {name: ", ".join(s for s in STAGES if groups.get(s) == name) for name in jobs}
    words = [
        f"{count} {name}" + (f" ({members[name]})" if members[name] else "")
        for name, count in jobs.items()
    ]
    total = sum(jobs.values())
    return f"{total} job{'s' * (total > 1)} of the cluster: {', '.join(words)}"


def _hours(planned: PlannedSweep, runs: Path) -> str:
    """What is left to train, in device-hours, and how that is known."""
    from primus.config.layout import layout
    from primus.config.turns import done, pace

    hours: dict[str, list[float]] = {"measured": [], "estimated": []}
    trained = unknown = 0
    for s in (plan.settings for plan in planned.plans):
        left = s.train_iters - done(s, runs)
        if left <= 0:
            trained += 1
        elif (speed := pace(s, runs)) is None:
            unknown += 1
        else:
            how = speed.known.partition(" ")[0]
            hours[how].append(left * speed.seconds * layout(s).world / 3600)
    name = "device-hours" if planned.plans[0].settings.platform == "cpu" else "GPU-hours"
    words = []
    if hours["measured"]:
        words.append(f"{_points(hours['measured'])} at the pace of runs like it")
    if hours["estimated"]:
        words.append(f"{_points(hours['estimated'])} estimated as in primus.plan")
    if unknown:
        words.append(
            f"not known for {unknown} point{'s' * (unknown > 1)}: no run like it was measured, and "
            "its hardware has no measured peak_tflops"
        )
    words += [f"{trained} trained already"] if trained else []
    return f"{name} of training: {'; '.join(words)}"


def _points(hours: Sequence[float]) -> str:
    return f"about {sum(hours):,.3g} for {len(hours)} point{'s' * (len(hours) > 1)}"
