"""Published architectures: one module each, found by being here.

A module declares `MODEL_TYPE` and `ARCHITECTURE` as in config.json, `objections(settings)`: what
the architecture has not, `fields(settings)`: its config.json, and `rules(settings)`: its tensors.
Settings are read by attribute.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from primus.config.families.mapping import Field, Objection, Rule
from primus.errors import UserError


@dataclass(frozen=True)
class Family:
    """One published architecture."""

    model_type: str
    architecture: str
    objections: Callable[[Any], Iterable[Objection]]
    fields: Callable[[Any], Iterable[Field]]
    rules: Callable[[Any], Iterable[Rule]]


@cache
def families() -> tuple[Family, ...]:
    """Every family, by name."""
    found = []
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        if hasattr(module, "MODEL_TYPE"):
            parts = (module.objections, module.fields, module.rules)
            found.append(Family(module.MODEL_TYPE, module.ARCHITECTURE, *parts))
    return tuple(sorted(found, key=lambda family: family.model_type))


def nearest(settings: Any) -> tuple[Family, list[Objection]]:
    """The family with the fewest objections to the settings, and these."""
    judged = [(family, list(family.objections(settings))) for family in families()]
    return min(judged, key=lambda pair: len(pair[1]))


def family_of(settings: Any) -> Family:
    """The family that the settings describe.

    Raises:
        UserError: there is none.
    """
    family, found = nearest(settings)
    if found:
        first = found[0]
        raise UserError(
            f"{first.key} = {first.value}: {family.architecture}, the nearest published "
            f"architecture, has it otherwise. Fix: {first.key}: {wanted_text(first)}"
        )
    return family


def wanted_text(objection: Objection) -> str:
    """The values that a family has, as YAML."""
    plain = {True: "true", False: "false", None: "null"}
    return " or ".join(plain[v] if isinstance(v, bool | None) else str(v) for v in objection.wanted)
