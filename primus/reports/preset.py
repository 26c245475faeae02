"""What a run sets other than its model's preset: the model's file over the defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from primus.config.layers import read_layer
from primus.config.load import Resolved, load
from primus.config.merge import merge
from primus.config.schema.settings import Settings
from primus.errors import ConfigError
from primus.reports.flat import flatten
from primus.reports.formats import MISSING
from primus.reports.inputs import Inputs
from primus.reports.reproduce import run_values

_OVERRIDE = "--config, or files that changed since"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A key with another value than the preset's.

    Attributes:
        preset: its value there; a dash where neither file nor defaults have one.
        source: where the run has its value from; of a key that follows from others "derived".
    """

    key: str
    preset: Any
    value: Any
    source: str


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The comparison with the files as they are when the report is made.

    Attributes:
        model: name of the file under configs/models.
        compared: how many settings were.
        caveat: why there is no comparison; empty where there is one.
    """

    model: str = ""
    compared: int = 0
    rows: list[Difference] = field(default_factory=list)
    caveat: str = ""


def preset_differences(inputs: Inputs, root: Path = Path()) -> Preset:
    """Every setting that the run's stages read and that its model's preset has otherwise."""
    wanted = run_values(inputs)
    if not wanted:
        return Preset(caveat="The report was given no settings.")
    try:
        resolved = load(inputs.train.experiment, root=root, stages=())
    except ConfigError:
        name = f"configs/{inputs.train.experiment}.yaml"
        return Preset(caveat=f"{name} cannot be read as it is now, so its model is not known.")
    model = resolved.settings.model
    preset = dict(flatten(merge(_defaults(), read_layer("model", model, root).values)))
    values = sorted(flatten(wanted))
    now = dict(flatten(resolved.settings.model_dump()))
    rows = [
        Difference(
            key=key,
            preset=preset.get(key, MISSING),
            value=value,
            source=_source(resolved, key) if now.get(key, ...) == value else _OVERRIDE,
        )
        for key, value in values
        if not _same(preset.get(key, ...), value)
    ]
    return Preset(model=model, compared=len(values), rows=rows)


def _defaults() -> dict[str, Any]:
    found = {}
    for name, info in Settings.model_fields.items():
        if not info.is_required():
            value = info.get_default(call_default_factory=True)
            found[name] = value.model_dump() if isinstance(value, BaseModel) else value
    return found


def _same(preset: Any, value: Any) -> bool:
    # YAML's 10000 is the schema's 10000.0; a tuple is JSON's list.
    return bool(preset == value) or (isinstance(preset, tuple) and list(preset) == value)


def _source(resolved: Resolved, key: str) -> str:
    """Of a key in a group that is set as a whole, the group's."""
    parts = key.split(".")
    names = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return next((resolved.sources[name] for name in names if name in resolved.sources), "default")
