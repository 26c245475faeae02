"""Which artefact a stage makes: a hash of exactly the settings that the stage depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel

from primus.config.fields import all_affects
from primus.config.schema.keys import STAGES, UPSTREAM, Stage
from primus.config.schema.settings import Settings
from primus.files import canonical_json, sha256_text

_DIGITS = 12
_OF_THE_DATASET: tuple[Stage, ...] = ("tokenizer", "data", "samples")
# Their artefacts stand in the run's directory: what they make follows from the run alone.
OF_THE_RUN: tuple[Stage, ...] = ("export", "evaluate", "report")

How = Literal["identity", "extent", "option"]


@dataclass(frozen=True, kw_only=True)
class StageKey:
    """What one stage of an experiment makes, and from what.

    Attributes:
        owner: the dataset for tokenizer, data and samples, which experiments share; otherwise
            the experiment.
        key: hash of the identity and of the upstream keys; part of the artefact's path.
        digest: hash of the key and the extent; part of the frozen settings' path.
        identity, extent, options: the values that the stage may read, by what a change means.
        upstream: keys of the stages it builds on.
    """

    stage: Stage
    owner: str
    key: str
    digest: str
    identity: Mapping[str, Any]
    extent: Mapping[str, Any]
    options: Mapping[str, Any]
    upstream: Mapping[str, str]


def stage_identity(settings: Settings, stage: Stage) -> StageKey:
    """The identity of one stage. A pure function of resolved settings."""
    return identities(settings)[stage]


def identities(settings: Settings) -> dict[Stage, StageKey]:
    """The identities of all stages, upstream ones first.

    A null counts as not being there, so that a new optional key leaves old hashes alone.
    """
    found: dict[Stage, StageKey] = {}
    for stage in STAGES:
        identity, extent, options = (
            declared(settings, stage, how) for how in ("identity", "extent", "option")
        )
        if stage == "tune" and not settings.gemm_tuning.enabled:
            identity, options = {"gemm_tuning": {"enabled": False}}, {}
        upstream: dict[str, str] = {name: found[name].key for name in upstream_of(settings, stage)}
        if stage in OF_THE_RUN:
            key = upstream["train"]
        else:
            key = digest_of({"identity": identity, "upstream": upstream})
        found[stage] = StageKey(
            stage=stage,
            owner=settings.dataset if stage in _OF_THE_DATASET else settings.experiment,
            key=key,
            digest=digest_of({"key": key, "extent": extent}),
            identity=identity,
            extent=extent,
            options=options,
            upstream=upstream,
        )
    return found


def upstream_of(settings: Settings, stage: Stage) -> tuple[Stage, ...]:
    """The stages on which `stage` builds in this experiment.

    Without tuning the identity of `train` holds that there is none; without start weights it is
    what it was before there was such a stage.
    """
    if stage == "tune" and not settings.gemm_tuning.enabled:
        return ()
    if stage == "train" and settings.load_hf is None:
        return tuple(name for name in UPSTREAM[stage] if name != "weights")
    return UPSTREAM[stage]


def has_stage(settings: Settings, stage: Stage) -> bool:
    """Whether the experiment has the stage at all."""
    if stage == "weights":
        return settings.load_hf is not None
    return settings.gemm_tuning.enabled or stage not in ("shapes", "tune")


def closure(settings: Settings, stage: Stage) -> tuple[Stage, ...]:
    """`stage` and all stages that have to run for it, upstream ones first.

    Without tuning, `tune` has an identity but nothing to run.
    """
    wanted: set[Stage] = {stage}
    for name in reversed(STAGES):
        if name in wanted:
            wanted.update(upstream_of(settings, name))
    if stage not in ("shapes", "tune"):
        wanted = {name for name in wanted if has_stage(settings, name)}
    return tuple(name for name in STAGES if name in wanted)


def declared(group: BaseModel, stage: Stage, how: How) -> dict[str, Any]:
    """The values that declare `stage` as `how`; of a group only the keys that do."""
    found: dict[str, Any] = {}
    whole = _declaring(type(group), stage, how)
    for name in type(group).model_fields:
        value = getattr(group, name)
        if name in whole:
            found[name] = value.model_dump() if isinstance(value, BaseModel) else value
        elif isinstance(value, BaseModel) and (inner := declared(value, stage, how)):
            found[name] = inner
    return found


@cache
def _declaring(group: type[BaseModel], stage: Stage, how: How) -> frozenset[str]:
    fields = all_affects(group).items()
    return frozenset(name for name, affects in fields if stage in getattr(affects, how))


def digest_of(value: Mapping[str, Any]) -> str:
    """The first 12 hex digits of the SHA-256 of canonical JSON without nulls."""
    return sha256_text(canonical_json(_without_nulls(value)))[:_DIGITS]


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nulls(v) for name, v in value.items() if v is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
