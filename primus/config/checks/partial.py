"""Settings that could not be built, for the checks that need only the sound part of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from primus.config.fields import group_of
from primus.config.schema.settings import Settings


class Unknown(Exception):
    """A check asked for a key that has no usable value."""


class Partial:
    """Settings in which some keys are missing or wrong; a check that reads one is skipped."""

    def __init__(self, values: Mapping[str, Any], unknown: set[str]) -> None:
        usable = {
            name: _built(name, value)
            for name, value in values.items()
            if name in Settings.model_fields and name not in unknown
        }
        self._settings = Settings.model_construct(**usable)
        self._unknown = unknown

    def __getattr__(self, name: str) -> Any:
        if name in self._unknown:
            raise Unknown(name)
        return getattr(self._settings, name)


def _built(name: str, value: Any) -> Any:
    group = group_of(Settings.model_fields[name])
    return group.model_validate(value) if group and isinstance(value, dict) else value
