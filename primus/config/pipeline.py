"""The experiments of one Snakemake call: loaded when asked for, each once, found by their keys."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primus.config import cluster, start_model, text_files
from primus.config.extent import Extents
from primus.config.frozen import StageSettings
from primus.config.identity import StageKey, closure, has_stage, identities
from primus.config.layers import is_name
from primus.config.load import Resolved, experiments, load
from primus.config.paths import ab, artifact, owner_kind, settings_file
from primus.config.problems import did_you_mean, listed, show
from primus.config.schema.keys import STAGES, UPSTREAM, Stage
from primus.config.schema.settings import Settings
from primus.config.sweep_names import SWEEPS, sweeps
from primus.errors import ConfigError, Problem, RunConflictError
from primus.files import require_writable

if TYPE_CHECKING:
    from primus.config.sweep import PlannedSweep

_DIGEST = re.compile(r"\.([0-9a-f]{12})\.json$")
# Calls of Snakemake that look at every rule; it takes options in short.
_ALL_RULES = re.compile(r"-[^-]*l.*|--l[it].*|--containeri.*|--exp.*|--ge.*")

# What a target of each kind asks for; the stages they build on follow. Of `ab` it is what it needs:
# no stage makes what it asks for.
TARGETS: dict[str, tuple[Stage, ...]] = {
    "data": ("samples",),
    "shapes": ("shapes",),
    "tune": ("tune",),
    "train": ("report", "export"),
    "export": ("export",),
    "report": ("report",),
    "eval": ("report", "evaluate"),
    "ab": ("samples", "tune", "weights"),
}
# Targets that make nothing: they run whenever they are asked for.
CHECKS = ("preflight",)
# For `snakemake --list-target-rules`.
MEANING: dict[str, str] = {
    "data": "tokenize the text of",
    "shapes": "list the GEMMs of",
    "tune": "tune the GEMMs of",
    "train": "train, export and report on",
    "export": "train and export",
    "report": "train, export and report on",
    "eval": "train, export, evaluate and report on",
    "ab": "compare tuned and default kernels in the training of",
    "preflight": "check the nodes for",
}

# For a job to start and end, besides what it does.
_START_MINUTES = 5


def stages_of(settings: Settings, target: str) -> list[Stage]:
    """What runs for the target of an experiment, upstream stages first."""
    wanted = {name for stage in TARGETS[target] for name in closure(settings, stage)}
    return [stage for stage in STAGES if stage in wanted]


@dataclass(frozen=True)
class Plan:
    """One resolved experiment, or a point of a sweep, and the identities of its stages.

    Attributes:
        overrides: with which it was resolved.
    """

    resolved: Resolved
    stages: Mapping[Stage, StageKey]
    overrides: Mapping[str, Any]

    @property
    def settings(self) -> Settings:
        """All settings, whatever stage they belong to."""
        return self.resolved.settings

    def runs(self, stage: Stage) -> bool:
        """Whether the experiment has the stage at all."""
        return has_stage(self.settings, stage)

    def frozen(self, stage: Stage) -> list[str]:
        """The frozen settings of `stage` and of every stage that runs for it."""
        return [settings_file(self.stages[name]) for name in closure(self.settings, stage)]

    def stages_of(self, target: str) -> list[Stage]:
        """What runs for the target, upstream stages first."""
        return stages_of(self.settings, target)

    def threads(self, stage: Stage) -> int:
        """Cores that a stage keeps busy; a measurement takes all cores of the ranks."""
        settings = self.settings
        if stage in ("tune", "train", "evaluate"):
            return settings.nproc_per_node * settings.threads_per_rank
        return {"data": settings.workers, "shapes": settings.threads_per_rank}.get(stage, 1)

    def resources(self, stage: Stage) -> Mapping[str, Any]:
        """What a stage asks of a cluster, by Snakemake's names."""
        return cluster.resources(self.settings, stage, self.threads(stage))

    def check_resources(self) -> Mapping[str, Any]:
        """What a check of the training's nodes asks of a cluster."""
        minutes = _START_MINUTES + math.ceil(self.settings.preflight.seconds / 60)
        return {**self.resources("train"), "runtime": minutes}

    def ab_resources(self) -> Mapping[str, Any]:
        """What a comparison of kernels asks of a cluster: that of the training, not for longer."""
        asked = self.resources("train")
        minutes = _START_MINUTES + math.ceil(self.settings.ab.minutes)
        return {**asked, "runtime": min(minutes, asked["runtime"])}


class Pipeline:
    """All experiments under one root, with the overrides of one command line."""

    def __init__(
        self, overrides: Mapping[str, Any], root: Path = Path(), sweeps: Sequence[str] = ()
    ) -> None:
        """`sweeps`: whose points jobs are of; a run may be a point of several, or of none."""
        self.overrides = dict(overrides)
        self.root = root
        self.sweeps = tuple(sweeps)
        self._plans: dict[tuple[str, frozenset[Stage]], Plan] = {}
        self._swept: dict[tuple[str, frozenset[Stage]], PlannedSweep] = {}
        self._evaluated: set[str] = set()
        self._extents = Extents()

    def names(self) -> list[str]:
        """Every experiment."""
        return experiments(self.root)

    def plan(self, experiment: str, target: str | None = None) -> Plan:
        """Load and check one experiment, for everything that `target` needs.

        Args:
            target: a name in TARGETS or CHECKS; None: any stage already planned will do.

        Raises:
            ConfigError: see `load`; also for a target that the experiment switches off.
        """
        if target is None:
            for (name, _), plan in self._plans.items():
                if name == experiment:
                    return plan
        # Without tuning fewer stages run than this says; none of those reads an input file.
        needs = _needs(TARGETS.get(target, ()) if target else ())
        key = (experiment, needs)
        if key not in self._plans:
            resolved = load(experiment, self.overrides, root=self.root, stages=needs)
            self._plans[key] = Plan(resolved, identities(resolved.settings), self.overrides)
        plan = self._plans[key]
        if target in ("tune", "ab") and not plan.settings.gemm_tuning.enabled:
            raise ConfigError([_nothing_to_tune(plan)])
        return plan

    def sweep(self, name: str, target: str | None = None) -> PlannedSweep:
        """Load and check every point of a sweep.

        Args:
            target: as in `plan`.

        Raises:
            ConfigError: see `read_sweep` and `load_points`; also for points that are one run.
        """
        if target is None:
            for (known, _), planned in self._swept.items():
                if known == name:
                    return planned
        needs = _needs(TARGETS[target] if target else ())
        if (name, needs) not in self._swept:
            from primus.config.sweep import plan_sweep  # few calls ask for one

            self._swept[name, needs] = plan_sweep(name, self.overrides, self.root, needs)
        return self._swept[name, needs]

    def target(self, kind: str, experiment: str) -> list[str]:
        """The files that the target `<kind>_<experiment>` asks for.

        Raises:
            UnavailableError: they could not be written; it is said before anything runs.
            UserError: another target wants one of them to go to another extent.
        """
        plan = self.plan(experiment, kind)
        if "evaluate" in TARGETS[kind]:
            self._evaluated.add(experiment)
        return self._ask(plan, kind, f"{kind}_{experiment}")

    def sweep_target(self, name: str) -> str:
        """The report of a sweep, for which every point is trained as by `train_<experiment>`.

        Raises:
            as `target`.
        """
        planned = self.sweep(name, "train")
        for point, plan in planned.points:
            self._ask(plan, "train", f"the point {point.label} of {planned.sweep.file}")
        return planned.page

    def swept(self, name: str, digest: str) -> PlannedSweep:
        """The sweep whose report has this digest.

        Raises:
            RunConflictError: it has other points by now.
        """
        planned = self.sweep(name)
        if planned.digest != digest:
            raise RunConflictError(
                f"{planned.sweep.file}: the points now have the digest {planned.digest}, not "
                f"{digest}: the configuration changed. Fix: snakemake sweep_{name}"
            )
        return planned

    def _ask(self, plan: Plan, kind: str, who: str) -> list[str]:
        require_writable(self.root / "output")
        for made in (plan.stages[stage] for stage in plan.stages_of(kind)):
            self._extents.want(made, who)
        if kind == "ab":
            return [ab(plan.stages["train"])]
        return [artifact(plan.stages[stage]) for stage in TARGETS[kind]]

    def by_key(self, stage: Stage, owner: str, key: str) -> Plan:
        """The experiment whose `stage` has this key.

        Raises:
            RunConflictError: no experiment has it (any more).
        """
        found = self._find(stage, owner, lambda made: made.key == key)
        if found is None:
            raise RunConflictError(_not_current(stage, owner, f"key {key}"))
        return found

    def by_digest(self, stage: Stage, owner: str, digest: str) -> Plan:
        """The experiment whose frozen settings of `stage` have this digest.

        Raises:
            RunConflictError: no experiment has it (any more).
        """
        found = self._find(stage, owner, lambda made: made.digest == digest)
        if found is None:
            raise RunConflictError(_not_current(stage, owner, f"settings {digest}"))
        return found

    def _find(self, stage: Stage, owner: str, matches: Callable[[StageKey], bool]) -> Plan | None:
        for plan in self._candidates(stage, owner):
            made = plan.stages[stage]
            if made.owner == owner and matches(made):
                return plan
        return None

    def _candidates(self, stage: Stage, owner: str) -> Iterator[Plan]:
        """Plans that may be meant, the likeliest first; read only when those before are not."""
        yield from self._plans.values()
        for planned in self._swept.values():
            yield from planned.plans
        # A job on another node plans nothing itself: it is asked for a file by its path.
        for name in self.sweeps:
            yield from self.sweep(name).plans
        names = self.names() if owner_kind(stage) == "dataset" else [owner]
        for name in sorted(set(names) & set(self.names()), key=lambda name: (name != owner, name)):
            try:
                yield self.plan(name)
            except ConfigError:
                if name == owner:
                    raise
        from primus.config.sweep_file import read_sweep

        for name in sweeps(self.root):
            try:
                if read_sweep(name, self.root).experiment in names:
                    yield from self.sweep(name).plans
            except ConfigError:
                continue

    def evaluates(self, plan: Plan, words: Sequence[str]) -> bool:
        """Whether the report shows an evaluation: one is asked for, or there from before.

        Args:
            words: the command line.
        """
        name = plan.settings.experiment
        asked = name in self._evaluated or f"eval_{name}" in words
        # Who asks for the experiment's evaluation does not ask for those of a sweep's points.
        return (asked and plan.overrides == self.overrides) or (
            self.root / artifact(plan.stages["evaluate"])
        ).is_file()

    def compared(self, plan: Plan) -> list[str]:
        """What `ab_` has found for the run; empty where it has not run."""
        path = ab(plan.stages["train"])
        return [path] if (self.root / path).is_file() else []

    def files(self, plan: Plan, stage: Stage) -> list[str]:
        """The files of the user that a stage reads: text, or a model."""
        settings = plan.settings
        if stage == "data":
            return text_files.matching(settings.data_path, self.root)
        if stage == "tokenizer" and settings.tokenizer_model is None:
            return text_files.matching(settings.tokenizer_data_path, self.root)
        if stage == "evaluate":
            how = settings.evaluation
            tasks = how.lm_eval_include_path if how.lm_eval_tasks else None
            own = text_files.below(tasks, self.root) if tasks else []
            return text_files.matching(how.texts, self.root) + own
        if stage == "weights" and settings.load_hf is not None:
            return start_model.files(settings.load_hf, self.root)
        return []


def freeze(made: StageKey, path: Path | str) -> None:
    """Write the frozen settings of a stage.

    Raises:
        RunConflictError: `path` carries another digest, so the configuration changed since the
            file was planned.
    """
    digest = _DIGEST.search(Path(path).name)
    if digest and digest.group(1) != made.digest:
        raise RunConflictError(
            f"{path}: the settings of {made.owner} now have the digest {made.digest}: the "
            "configuration changed since this job was planned. Fix: run snakemake again"
        )
    StageSettings.of_key(made, made.owner).save(path)


def check_targets(words: Sequence[str], names: Sequence[str], swept: Sequence[str]) -> None:
    """Look for targets of ours that name nothing, with a better word than Snakemake's.

    Args:
        words: the command line.
        names: every experiment. swept: every sweep.

    Raises:
        ConfigError: there are some.
    """
    found = []
    for word in words:
        kind, _, experiment = word.partition("_")
        is_sweep = kind == "sweep"
        known, file = (swept, SWEEPS) if is_sweep else (names, "configs")
        if not is_sweep and kind not in (*TARGETS, *CHECKS):
            continue
        if is_name(experiment) and experiment not in known:
            here = f"start where {file}/ is; this is {Path.cwd()}"
            fix = did_you_mean(experiment, known) or (f"known: {listed(known)}" if known else here)
            why = f"there is no {'sweep' if is_sweep else 'experiment'} {show(experiment)}"
            found.append(Problem(file=file, key="", value="", why=why, fix=fix))
    if found:
        raise ConfigError(found)


def mentioned(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """The experiments whose targets a call of Snakemake can ask for: no others need rules.

    A rule costs Snakemake a quarter of a millisecond, wanted or not. Whoever names one, in
    whatever option, writes the experiment's name somewhere on the command line.

    Args:
        argv: of the process. All experiments, where it is not Snakemake's own command.
        names: every experiment.
    """
    own = Path(argv[0]).parts[-1:] == ("snakemake",)
    own = own or Path(argv[0]).parts[-2:] == ("snakemake", "__main__.py")
    if not own or any(_ALL_RULES.fullmatch(word) for word in argv[1:]):
        return list(names)
    line = " ".join(argv[1:])
    return [name for name in names if name in line]


def _needs(wanted: tuple[Stage, ...]) -> frozenset[Stage]:
    needs: set[Stage] = set(wanted)
    for stage in reversed(STAGES):
        if stage in needs:
            needs.update(UPSTREAM[stage])
    return frozenset(needs)


def _nothing_to_tune(plan: Plan) -> Problem:
    return Problem(
        file=plan.resolved.source("gemm_tuning.enabled"),
        key="gemm_tuning.enabled",
        value="false",
        why="the target asks for tuned kernels, and this experiment has tuning switched off",
        fix="write true, or ask for another target",
    )


def _not_current(stage: Stage, owner: str, what: str) -> str:
    return (
        f"no experiment has {what} for stage {stage} of {owner}: the configuration changed since "
        "that path was made. Fix: ask for a target such as train_<experiment>, or restore the edit"
    )
