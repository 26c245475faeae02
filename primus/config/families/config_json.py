"""config.json from settings, and settings against a config.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from primus.config.families import Family
from primus.config.families.mapping import REQUIRED, Field

_ROPE = "rope_scaling."


class Mismatch(NamedTuple):
    """An entry of config.json that says something else than the settings.

    Attributes:
        key: the setting; "" where none can change it.
    """

    key: str
    why: str
    fix: str


def content(fields: Iterable[Field]) -> dict[str, Any]:
    """The entries as published: the frequencies' scaling is a group, null where there is none."""
    flat = {field.name: field.value for field in fields}
    rope = {name.removeprefix(_ROPE): flat.pop(name) for name in list(flat) if _ROPE in name}
    scaled = rope.get("rope_type") != "default"
    return flat | {_ROPE[:-1]: rope if scaled else None}


def block_scales(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns that share a scale in float8 weights as DeepSeek publishes them.

    Each weight then has a second tensor, its name and `_scale_inv`. None: not such weights.
    """
    quantized = _group(config, "quantization_config")
    if (quantized.get("quant_method"), quantized.get("fmt", "e4m3")) != ("fp8", "e4m3"):
        return None
    match quantized.get("weight_block_size"):
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
    return None


def _group(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A group of entries; empty where something else stands, which then does not fit anything."""
    found = config.get(name)
    return dict(found) if isinstance(found, dict) else {}


def mismatches(config: Mapping[str, Any], family: Family, settings: Any) -> Iterator[Mismatch]:
    """Every entry of a published config.json that does not describe the settings."""
    if (found := config.get("model_type")) != family.model_type:
        why = f"the settings describe model_type {family.model_type}, config.json says {found}"
        yield Mismatch("", why, "name a model of that type, or change the model's file")
        return
    quantized = config.get("quantization_config")
    if quantized is not None and block_scales(config) is None:
        why = f"config.json has quantization_config {_shown(quantized)}, which is not read"
        yield Mismatch("", why, "name a version of the model in bfloat16")
    flat, fields = _flat(config), list(family.fields(settings))
    for field in fields:
        theirs = flat.get(_current(field.name), field.default)
        if theirs is REQUIRED or theirs != field.value:
            yield _mismatch(field, theirs, settings)
    known = {_current(field.name) for field in fields}
    for name, value in flat.items():
        if name.startswith(_ROPE) and name not in known and value is not None:
            why = f"config.json says {name} = {_shown(value)}, which Megatron-core has not"
            yield Mismatch("", why, "name another model")


def _mismatch(field: Field, theirs: Any, settings: Any) -> Mismatch:
    said = "does not say" if theirs is REQUIRED else f"says {_shown(theirs)} for"
    why = f"config.json {said} {field.name}, the settings give {_shown(field.value)}"
    if not field.key:
        return Mismatch("", f"{why}, a constant of Megatron-core", "name another model")
    same = theirs is not REQUIRED and getattr(settings, field.key) == field.value
    fix = f"write {field.key}: {_shown(theirs)}" if same else f"change {field.key}"
    return Mismatch(field.key, why, f"{fix} in the model's file, or name another model")


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    # transformers 5 writes rope_parameters, published models rope_theta and rope_scaling.
    flat = {name: value for name, value in config.items() if name not in ("rope_parameters",)}
    flat.pop("rope_scaling", None)
    rope = _group(config, "rope_scaling") | _group(config, "rope_parameters")
    if "rope_theta" in rope:
        flat["rope_theta"] = rope.pop("rope_theta")
    rope.setdefault("rope_type", rope.pop("type", "default"))
    return flat | {_current(_ROPE + name): value for name, value in rope.items()}


def _current(name: str) -> str:
    return f"{_ROPE}rope_type" if name == f"{_ROPE}type" else name


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)
