"""What pydantic says about a value, in the words of someone who has to mend it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from typing import Any, get_args

from pydantic_core import ErrorDetails

from primus.config.fields import alternatives, dotted_keys, field_at, group_of
from primus.config.schema.keys import NAME_PATTERN
from primus.config.schema.settings import Settings
from primus.config.yaml_file import KeyPath

_BOUNDS = {
    "greater_than_equal": ("ge", ">="),
    "greater_than": ("gt", ">"),
    "less_than_equal": ("le", "<="),
    "less_than": ("lt", "<"),
}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list such as [a, b]",
    "dict": "a group of 'name: value' lines",
    "model": "a group of 'name: value' lines",
}
IN_QUOTES = "write it in quotes: "
_NUMBER = re.compile(r"([-+]?)(\d*)\.?(\d*)[eE]([-+]?)(\d+)")
YTE = "__use_yte__"
NOT_A_NAME = (
    "is not a name: it becomes part of paths and commands",
    "use letters, digits, '_', '.' and '-', a letter or digit first, at most 64",
)


def show(value: Any) -> str:
    """`value` on one short line, text in quotes."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except ValueError:
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest of `known`, as a question; empty where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else ""


def listed(names: Iterable[str]) -> str:
    """Names as a list in a sentence; "none" where there are none."""
    return ", ".join(sorted(names)) or "none"


def explain_unknown(path: KeyPath) -> tuple[str, str]:
    """Why a key is unknown, and the nearest one."""
    if path[-1] == YTE:
        return "executes Python code when other tools read the file", "remove the line"
    elsewhere = [key for key in dotted_keys() if key.endswith(f".{path[-1]}")]
    if elsewhere:
        return "unknown key", f"did you mean {elsewhere[0]}?"
    above = field_at(path[:-1])
    group = (group_of(above) if above else None) or Settings
    known = group.model_fields
    fallback = f"see docs/reference.md; known here: {listed(known)}"
    if group is Settings:
        fallback = "remove it, or see docs/reference.md for the known keys"
    prefix = "".join(f"{name}." for name in path[:-1])
    return "unknown key", did_you_mean(".".join(path), [prefix + n for n in known]) or fallback


def explain(error: ErrorDetails, path: KeyPath) -> tuple[str, str]:
    """Why a value is wrong, and the fix."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return explain_unknown(path)
    if kind == "missing":
        field = field_at(path)
        doc = field.description if field else ""
        return "required key is missing", f"add '{path[-1]}: ...' ({doc})"
    if kind in _BOUNDS:
        name, sign = _BOUNDS[kind]
        return f"must be {sign} {context[name]}", f"write a value {sign} {context[name]}"
    if kind == "literal_error":
        return _not_allowed(value, path)
    if kind == "string_pattern_mismatch":
        return _bad_pattern(context["pattern"])
    if kind == "finite_number":
        return "must be finite", "write a number"
    for prefix, meaning in _KINDS.items():
        if kind.startswith(prefix) and kind.endswith(("_type", "_parsing", "_from_float")):
            return f"must be {meaning}", _typed_fix(prefix, value, meaning)
    return error["msg"][:1].lower() + error["msg"][1:], "see docs/reference.md"


def _not_allowed(value: Any, path: KeyPath) -> tuple[str, str]:
    field = field_at(path)
    parts = alternatives(field.annotation) if field else ()
    allowed = [str(a) for part in parts for a in get_args(part)]
    near = did_you_mean(str(value), allowed)
    fix = f"{near} " if near else ""
    return "is not one of the allowed values", f"{fix}allowed: {', '.join(allowed)}".strip()


def _bad_pattern(pattern: str) -> tuple[str, str]:
    if pattern == NAME_PATTERN:
        return NOT_A_NAME
    return f"does not match {pattern}", "write three shares such as 969,30,1"


def _typed_fix(prefix: str, value: Any, meaning: str) -> str:
    if prefix in ("int", "float") and isinstance(value, str):
        number = _as_yaml_number(value)
        if number and prefix == "float":
            return f"write {number} (YAML reads {value} as text)"
        try:
            return f"write {int(value)} without quotes"
        except ValueError:
            return f"write {meaning}"
    if prefix == "int" and isinstance(value, float) and value.is_integer():
        return f"write {int(value)}"
    if prefix == "string" and isinstance(value, int | float | bool):
        return IN_QUOTES + json.dumps(str(value))
    if prefix == "list" and isinstance(value, str):
        return f"write [{value}]"
    return f"write {meaning}"


def _as_yaml_number(text: str) -> str | None:
    """`1e-4` as YAML 1.1 wants it: with a point and a signed exponent."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None or not (match.group(2) or match.group(3)):
        return None
    sign, whole, fraction, exponent_sign, exponent = match.groups()
    return f"{sign}{whole or '0'}.{fraction or '0'}e{exponent_sign or '+'}{exponent}"
