"""The settings of a run, of every stage behind it, and which of them differ between runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from primus.artifacts.comparison import How, SettingDifference
from primus.artifacts.run import RunIdentity
from primus.config.fields import affects, field_at
from primus.config.frozen import StageSettings
from primus.config.identity import digest_of
from primus.config.schema.keys import STAGES, UPSTREAM, Affects, Stage
from primus.errors import ArtifactError

_OFF = {"gemm_tuning": {"enabled": False}}
# `primus.config.identity`: what an experiment without tuning has for the key of that stage.
_OFF_KEY = digest_of({"identity": _OFF, "upstream": {}})


@dataclass(frozen=True, kw_only=True)
class Known:
    """The settings of a run that can still be read.

    Attributes:
        values: by dotted key.
        stages: whose settings are all among them, options included. Of the training the others
            always are: the run keeps them itself.
        complete: those of all stages behind the run are.
    """

    values: dict[str, Any]
    stages: frozenset[Stage]
    complete: bool


def known_settings(
    roots: Sequence[Path], identity: RunIdentity, recorded: Mapping[str, Any]
) -> Known:
    """What the stages of a run could read.

    Args:
        roots: where frozen settings may lie.
        recorded: the settings of the training as the run itself keeps them, which may be further
            (`train_iters`) than the frozen ones.
    """
    values: dict[str, Any] = {}
    stages: set[Stage] = set()
    complete = True
    wanted: dict[Stage, str] = {"train": identity.key}
    while wanted:
        stage, key = wanted.popitem()
        if stage == "tune" and key == _OFF_KEY:
            values |= dict(_flat(_OFF))
            continue
        found = _frozen(roots, stage, key)
        if found is None:
            complete = False
            continue
        stages.add(stage)
        for group in (found.identity, found.extent, found.options):
            values |= dict(_flat(group))
        wanted |= {name: found.upstream[name] for name in STAGES if name in found.upstream}
    values |= dict(_flat(recorded))
    return Known(values=values, stages=frozenset(stages), complete=complete)


def _frozen(roots: Sequence[Path], stage: Stage, key: str) -> StageSettings | None:
    """The newest frozen settings with that key; they differ in extent and options alone."""
    paths = [path for root in roots for path in root.glob(f"*/{stage}.*.json")]
    for path in sorted(paths, key=lambda path: -path.stat().st_mtime_ns):
        try:
            found = StageSettings.load(path, stage)
        except ArtifactError:
            continue  # of another version; what the run itself keeps is compared all the same
        if found.key == key:
            return found
    return None


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def differences(runs: Sequence[Known]) -> list[SettingDifference]:
    """The keys whose known values are not all the same, by name.

    A key that one run does not have has its default there, where the settings of a stage that
    reads it are known; else its value is not known, and does not count.
    """
    found = []
    for key in sorted({key for run in runs for key in run.values}):
        how, stages = touched(key)
        known = [key in run.values or _knows(run, key) for run in runs]
        default = _default(key)
        values = [
            run.values.get(key, default) if is_known else None
            for run, is_known in zip(runs, known, strict=True)
        ]
        held = [value for value, is_known in zip(values, known, strict=True) if is_known]
        if any(value != held[0] for value in held[1:]):
            found.append(
                SettingDifference(key=key, values=values, known=known, how=how, stages=stages)
            )
    return found


def _knows(run: Known, key: str) -> bool:
    """Whether a run would have the key, were it set."""
    own = {stage for one in _declared(key) for stage in (*one.identity, *one.extent)}
    options = {stage for one in _declared(key) for stage in one.option}
    return "train" in own or bool((own | options) & run.stages)


@cache
def _declared(key: str) -> tuple[Affects, ...]:
    """What the key, and each group that it stands in, declares."""
    path = tuple(key.split("."))
    fields = [field_at(path[:length]) for length in range(1, len(path) + 1)]
    return tuple(affects(field) for field in fields if field is not None)


def touched(key: str) -> tuple[How, list[str]]:
    """What a change of a key means, and the stages that then make something else.

    Returns:
        "identity", "extent", "option" (no stage makes anything else) or "" (no key of today);
        the stages that read it so, and all that build on them, upstream ones first.
    """
    declared = _declared(key)
    identity = {stage for one in declared for stage in one.identity}
    extent = {stage for one in declared for stage in one.extent}
    option = any(one.option for one in declared)
    changed = identity | extent
    for stage in STAGES:
        if changed & set(UPSTREAM[stage]):
            changed.add(stage)
    how: How = "identity" if identity else "extent" if extent else "option" if option else ""
    return how, [stage for stage in STAGES if stage in changed]


def _default(key: str) -> Any:
    """What the schema says of a key that is not set; null where it says nothing."""
    field = field_at(tuple(key.split(".")))
    if field is None:
        return None
    value = field.get_default(call_default_factory=True)
    return None if value is PydanticUndefined else value
