"""The command that makes the same run again, and whether it really asks for the same identity."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from primus.config.identity import stage_identity
from primus.config.load import Resolved, load
from primus.errors import ConfigError
from primus.reports.inputs import Inputs


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What to type.

    Attributes:
        commands: in order.
        caveat: why they may not give the same run; empty where they were found to.
    """

    commands: list[str]
    caveat: str


def reproduction(inputs: Inputs, root: Path = Path()) -> Reproduction:
    """Find the `--config` that turns the experiment's files under `root` into this run."""
    code = inputs.train.environment
    return reproduce(
        experiment=inputs.train.experiment,
        key=inputs.train.key,
        wanted=run_values(inputs),
        iteration=inputs.train.iteration,
        commit=code.code_commit,
        dirty=code.code_dirty,
        root=root,
    )


def reproduce(
    *,
    experiment: str,
    key: str,
    wanted: Mapping[str, Any],
    iteration: int,
    commit: str,
    dirty: bool,
    root: Path = Path(),
) -> Reproduction:
    """The same of a run that is known by its values.

    Args:
        key: of the run.
        wanted: what is known of the settings that its stages read.
        iteration: how far it went; that is further than a `train_iters` that was lowered since.
        commit, dirty: of the code that trained it.
    """
    if iteration > wanted.get("train_iters", iteration):
        wanted = {**wanted, "train_iters": iteration}
    overrides, caveat = _overrides(experiment, key, wanted, root)
    target = f"snakemake {shlex.quote(f'train_{experiment}')}"
    if overrides:
        pairs = (f"{name}={_text(value)}" for name, value in sorted(overrides.items()))
        target += " --config " + " ".join(shlex.quote(pair) for pair in pairs)
    checkout = [f"git checkout {shlex.quote(commit)}"] if commit else []
    if dirty:
        caveat = "The run was trained with uncommitted changes to the code. " + caveat
    return Reproduction(commands=[*checkout, target], caveat=caveat.strip())


def _overrides(
    experiment: str, key: str, wanted: Mapping[str, Any], root: Path
) -> tuple[dict[str, Any], str]:
    if not wanted:
        return {}, "The report was given no settings: compare those of the run with your files."
    try:
        base = load(experiment, root=root, stages=())
        found = differences(wanted, base, derived=False)
        found = _merged(found, differences(wanted, load(experiment, found, root=root, stages=())))
        final = load(experiment, found, root=root, stages=())
    except ConfigError:
        return {}, (
            f"configs/{experiment}.yaml does not give this run as it is now: "
            "set the values under Settings."
        )
    if stage_identity(final.settings, "train").key == key:
        return found, ""
    return found, (
        "With the files under configs as they are now this gives another identity: "
        "compare with the values under Settings."
    )


def run_values(inputs: Inputs) -> dict[str, Any]:
    """Every setting that the stages of the run read, groups merged.

    Of an experiment without tuning no stage says so: the tune stage is just not there.
    """
    values: dict[str, Any] = {}
    stages = {stage.stage for stage in inputs.settings}
    if "train" in stages and "tune" not in stages:
        values["gemm_tuning"] = {"enabled": False}
    for stage in inputs.settings:
        for group in (stage.identity, stage.extent, stage.options):
            values = _merged(values, group)
    return values


def differences(
    wanted: Mapping[str, Any], resolved: Resolved, *, derived: bool = True
) -> dict[str, Any]:
    """The wanted values that `resolved` does not have; of groups only the keys that differ.

    Args:
        derived: also where the value there follows from other keys.
    """
    have = resolved.settings.model_dump()
    found = {}
    for name, value in wanted.items():
        if resolved.source(name) == "derived" and not derived:
            continue
        if isinstance(value, dict) and isinstance(other := have.get(name), dict):
            inner = {key: v for key, v in value.items() if other.get(key) != v}
            if inner:
                found[name] = inner
        elif have.get(name) != value:
            found[name] = value
    return found


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        name: base[name] | value
        for name, value in over.items()
        if isinstance(value, dict) and isinstance(base.get(name), dict)
    }
    return {**base, **over, **both}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
