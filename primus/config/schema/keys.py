"""How a configuration key is declared: value, bounds, meaning, and the stages it touches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Stage = Literal[
    "tokenizer",
    "data",
    "samples",
    "shapes",
    "tune",
    "weights",
    "train",
    "export",
    "evaluate",
    "report",
]
STAGES: tuple[Stage, ...] = get_args(Stage)

# Which stages a stage builds on; a key that changes one of these changes it too.
UPSTREAM: dict[Stage, tuple[Stage, ...]] = {
    "tokenizer": (),
    "data": ("tokenizer",),
    "samples": ("data",),
    "shapes": (),
    "tune": ("shapes",),
    "weights": (),
    "train": ("samples", "tune", "weights"),
    "export": ("train",),
    "evaluate": ("train", "export"),
    "report": ("train",),
}

# Names that become parts of paths, rule names and job names. ASCII: one name has one spelling.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]


@dataclass(frozen=True)
class Affects:
    """The stages that may read a key, by what a change of its value means to them.

    Attributes:
        identity: the stage makes something else: its artefact goes to another path.
        extent: the stage makes more or less of the same thing: it runs again in place.
        option: the stage reads the value, but what it makes stays valid: nothing re-runs.
    """

    identity: tuple[Stage, ...] = ()
    extent: tuple[Stage, ...] = ()
    option: tuple[Stage, ...] = ()


class Keys(BaseModel):
    """Base of every group of keys: unknown keys and silent type conversions are errors.

    Only what validates is built: most groups are but a part of `Settings`.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        validate_default=True,
        allow_inf_nan=False,
        defer_build=True,
    )


def key(
    default: Any = ...,
    *,
    doc: str,
    identity: Stage | tuple[Stage, ...] = (),
    extent: Stage | tuple[Stage, ...] = (),
    option: Stage | tuple[Stage, ...] = (),
    **bounds: Any,
) -> Any:
    """Declare a key. `bounds` are pydantic's (`ge`, `gt`, `le`, `min_length`, …).

    A key without any stage is read only by checks and by the pipeline itself.
    """
    affects = Affects(identity=_several(identity), extent=_several(extent), option=_several(option))
    return Field(default, description=doc, json_schema_extra=_plain(affects), **bounds)


def _several(stages: Stage | tuple[Stage, ...]) -> tuple[Stage, ...]:
    return (stages,) if isinstance(stages, str) else stages


def _plain(affects: Affects) -> dict[str, Any]:
    return {"affects": {how: list(stages) for how, stages in vars(affects).items() if stages}}
