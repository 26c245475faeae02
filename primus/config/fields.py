"""Questions about the schema: which keys there are, what they hold, which stages they touch."""

from __future__ import annotations

import types
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from primus.config.schema.architecture import Architecture
from primus.config.schema.experts import Experts
from primus.config.schema.hardware import Hardware
from primus.config.schema.keys import Affects, Keys
from primus.config.schema.latent_attention import LatentAttention
from primus.config.schema.settings import Settings


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, `Annotated` taken off; one member for any other type."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(part for arg in get_args(annotation) for part in alternatives(arg))
    return (annotation,)


def group_of(field: FieldInfo) -> type[Keys] | None:
    """The group of keys that the field holds, or None for a plain value."""
    for part in alternatives(field.annotation):
        if isinstance(part, type) and issubclass(part, Keys):
            return part
    return None


def holds_text(annotation: Any) -> bool:
    """Whether a value of this type may be text."""
    return any(
        part is str
        or (get_origin(part) is Literal and any(isinstance(a, str) for a in get_args(part)))
        for part in alternatives(annotation)
    )


def affects(field: FieldInfo) -> Affects:
    """The stages that the field itself declares."""
    extra = field.json_schema_extra
    declared: Any = extra.get("affects", {}) if isinstance(extra, dict) else {}
    return Affects(**{how: tuple(stages) for how, stages in declared.items()})


@cache
def all_affects(group: type[BaseModel]) -> dict[str, Affects]:
    """The stages that each field of a group declares."""
    return {name: affects(field) for name, field in group.model_fields.items()}


def walk(
    group: type[Keys] = Settings, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Every key of `group` and of the groups in it, in the order of declaration."""
    for name, field in group.model_fields.items():
        yield (*path, name), field
        inner = group_of(field)
        if inner is not None:
            yield from walk(inner, (*path, name))


@cache
def dotted_keys() -> tuple[str, ...]:
    """Every key with its groups, such as `gemm_tuning.budget_minutes`."""
    return tuple(".".join(path) for path, _ in walk())


def field_at(path: tuple[str, ...]) -> FieldInfo | None:
    """The declaration of a key, or None where there is none."""
    group: type[Keys] | None = Settings
    field: FieldInfo | None = None
    for name in path:
        if group is None or name not in group.model_fields:
            return None
        field = group.model_fields[name]
        group = group_of(field)
    return field


def home_of(name: str) -> str:
    """The kind of file in which a top-level key normally stands."""
    if any(name in group.model_fields for group in (Architecture, Experts, LatentAttention)):
        return "model"
    return "hardware" if name in Hardware.model_fields else "experiment"
