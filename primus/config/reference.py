"""What is generated from the schema: the reference page, the editors' schemas, the defaults."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from primus.config.fields import affects, alternatives, dotted_keys, group_of, home_of
from primus.config.layers import FOLDERS
from primus.config.schema.architecture import Architecture
from primus.config.schema.data import Data
from primus.config.schema.experts import Experts
from primus.config.schema.export import LanguageCode
from primus.config.schema.hardware import Hardware
from primus.config.schema.keys import Keys
from primus.config.schema.latent_attention import LatentAttention
from primus.config.schema.parallel import Parallel
from primus.config.schema.precision import Precision
from primus.config.schema.settings import Settings
from primus.config.schema.tracking import Tracking
from primus.config.schema.training import Training
from primus.config.schema.tuning import Factor
from primus.config.sweep_file import MAX_POINTS

_SECTIONS: tuple[tuple[str, type[Keys]], ...] = (
    ("Model", Architecture),
    ("Multi-latent attention", LatentAttention),
    ("Mixture of experts", Experts),
    ("Hardware", Hardware),
    ("Parallel layout", Parallel),
    ("Data and tokenizer", Data),
    ("Training", Training),
    ("Trackers", Tracking),
    ("Precision", Precision),
)
_GROUPS = (
    ("GEMM tuning", "gemm_tuning"),
    ("Tuned against default kernels", "ab"),
    ("Checks of the nodes", "preflight"),
    ("SLURM", "slurm"),
    ("Evaluation", "evaluation"),
    ("Card of the exported model", "model_card"),
)
_WORDS: dict[Any, str] = {
    int: "integer",
    float: "number",
    bool: "true/false",
    str: "text",
    list[str]: "list of text",
    list[float]: "list of numbers",
    list[LanguageCode]: "list of text",
    list[Factor]: "list of numbers > 0",
    dict[str, str | None]: "names and text or null",
}
# Where the schema of each kind of file lies.
SCHEMAS = {"experiment": "configs/schema.json", "sweep": "configs/sweeps/schema.json"} | {
    kind: f"{folder}/schema.json" for kind, folder in FOLDERS.items()
}
_HEAD = """\
# Every configuration key

Written by `python -m primus.config reference`; do not edit. How the files fit together:
[configuration.md](configuration.md).

*Identity*: a change makes something else, at another path. *Extent*: a change makes more or less
of the same thing, in place. *Option*: read by the stage, but a change re-runs nothing.
"""
_DEFAULTS_HEAD = """\
# Every key with its meaning and default. Written by `python -m primus.config defaults`; do not
# edit: this file is not read. Keys without a default stand as `key:`.
"""


def markdown() -> str:
    """docs/reference.md."""
    parts = [_HEAD]
    for title, fields in _sections():
        parts.append(
            f"\n## {title}\n\n| key | type | default | meaning | stages |\n|---|---|---|---|---|"
        )
        parts += [_table_row(path, field) for path, field in fields]
    return "\n".join(parts) + "\n"


def defaults() -> str:
    """configs/default.yaml."""
    lines = [_DEFAULTS_HEAD]
    for title, fields in _sections():
        lines.append(f"\n# {title}")
        for path, field in fields:
            indent = "  " * (len(path) - 1)
            lines.append(f"{indent}# {field.description} ({_type(field)})")
            lines.append(f"{indent}{path[-1]}:{_default_yaml(field)}")
    return "\n".join(lines) + "\n"


def json_schema(kind: str = "experiment") -> str:
    """The editors' schema of one kind of file, `schema.json` in its folder.

    Args:
        kind: one of `SCHEMAS`.
    """
    if kind == "sweep":
        return _sweep_schema()
    schema = Settings.model_json_schema()
    for group in (schema, *schema["$defs"].values()):
        group.pop("required", None)
        group["properties"] = {n: _editor(p) for n, p in group["properties"].items()}
    properties = schema["properties"]
    schema["properties"] = {n: p for n, p in properties.items() if _may_stand_in(kind, n)}
    schema |= {"title": f"Primus {kind}", "$schema": "http://json-schema.org/draft-07/schema#"}
    # Of the others any key may be left to the experiment.
    if kind == "experiment":
        schema["required"] = ["model"]
    schema["definitions"] = _used(schema["properties"], schema.pop("$defs"))
    text = json.dumps(schema, indent=2, sort_keys=True).replace("#/$defs/", "#/definitions/")
    return text + "\n"


def _may_stand_in(kind: str, name: str) -> bool:
    """Whether a key may stand in such a file, as `primus.config.layers` has it."""
    if kind == "experiment":
        return name != "experiment"
    if kind == "recipe":
        return name != "experiment" and name not in FOLDERS
    return home_of(name) == kind


def _used(properties: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The definitions that properties refer to, and those refer to."""
    found: dict[str, Any] = {}
    waiting = [json.dumps(properties)]
    while waiting:
        for name in re.findall(r'"#/\$defs/([^"]+)"', waiting.pop()):
            if name not in found:
                found[name] = definitions[name]
                waiting.append(json.dumps(found[name]))
    return found


def _sweep_schema() -> str:
    """Names of keys are checked here, values when points are loaded."""
    key = {"propertyNames": {"enum": sorted(set(dotted_keys()) - {"experiment"})}}
    grid = {"type": "array", "minItems": 1, "description": "Values of the key."}
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Primus sweep",
        "type": "object",
        "additionalProperties": False,
        "required": ["experiment"],
        "definitions": {"keys": key},
        "properties": {
            "experiment": {"type": "string", "description": "Whose keys are varied."},
            "grid": {
                "description": "Every combination of these values is a point.",
                "type": "object",
                "minProperties": 1,
                "additionalProperties": grid,
                "allOf": [{"$ref": "#/definitions/keys"}],
            },
            "points": {
                "description": "Exactly these points, each combined with the grid if there is one.",
                "type": "array",
                "minItems": 1,
                "items": {"type": "object", "allOf": [{"$ref": "#/definitions/keys"}]},
            },
            "max_points": {
                "description": "Most points that the sweep may make.",
                "type": "integer",
                "minimum": 1,
                "default": MAX_POINTS,
            },
        },
    }
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


def _editor(declared: dict[str, Any]) -> dict[str, Any]:
    """A property without our own annotations; where text is no value, `${VAR}` still is."""
    cleaned = {k: v for k, v in declared.items() if k not in ("affects", "title")}
    kinds = json.dumps(cleaned)
    if '"string"' in kinds or "$ref" in kinds:
        return cleaned
    kept = {k: cleaned.pop(k) for k in ("description", "default") if k in cleaned}
    variable = {"type": "string", "pattern": "\\$\\{"}
    return kept | {"anyOf": [*cleaned.get("anyOf", [cleaned]), variable]}


def _sections() -> Iterator[tuple[str, list[tuple[tuple[str, ...], FieldInfo]]]]:
    own = {n: f for n, f in Settings.model_fields.items() if n in ("model", "recipe", "hardware")}
    yield "Experiment", [((name,), field) for name, field in own.items()]
    for title, group in _SECTIONS:
        yield title, list(_with_groups(group.model_fields))
    for title, name in _GROUPS:
        yield title, list(_with_groups({name: Settings.model_fields[name]}))


def _with_groups(
    fields: dict[str, FieldInfo], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    for name, field in fields.items():
        yield (*path, name), field
        group = group_of(field)
        if group is not None:
            yield from _with_groups(group.model_fields, (*path, name))


def _table_row(path: tuple[str, ...], field: FieldInfo) -> str:
    touched = affects(field)
    stages = "; ".join(
        f"{how}: {', '.join(names)}" for how, names in vars(touched).items() if names
    )
    default = "" if group_of(field) else _default(field)
    cells = (f"`{'.'.join(path)}`", _type(field), default, field.description or "", stages)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(field: FieldInfo) -> str:
    return "**required**" if field.is_required() else f"`{json.dumps(field.default)}`"


def _default_yaml(field: FieldInfo) -> str:
    if group_of(field) and field.default is not None:
        return ""
    if field.is_required() or field.default is None:
        return "" if field.is_required() else " null"
    if isinstance(field.default, float) and "e" in repr(field.default):
        return f" {field.default:.1e}"
    return f" {json.dumps(field.default)}"


def _type(field: FieldInfo) -> str:
    """The type in words, with bounds."""
    words = []
    for part in alternatives(field.annotation):
        if part is type(None):
            words.append("null")
        elif get_origin(part) is Literal:
            words.append(", ".join(str(a) for a in get_args(part)))
        elif get_origin(part) is list and get_origin(get_args(part)[0]) is Literal:
            words.append("list of " + ", ".join(str(a) for a in get_args(get_args(part)[0])))
        elif get_origin(part) is Annotated:
            words.append(_WORDS[get_args(part)[0]])
        elif isinstance(part, type) and issubclass(part, Keys):
            words.append("group")
        else:
            words.append(_WORDS[part])
    signs = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
    bounds = [
        f"{sign} {getattr(rule, name)}"
        for rule in field.metadata
        for name, sign in signs
        if getattr(rule, name, None) is not None
    ]
    return " or ".join(words) + (f" {', '.join(bounds)}" if bounds else "")
