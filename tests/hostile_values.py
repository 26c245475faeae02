"""Values that a shell, a glob, Snakemake or a terminal would take for something else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from primus.config.fields import alternatives, dotted_keys, field_at, group_of
from primus.config.load import load
from primus.errors import ConfigError

PAYLOADS = {
    "semicolon": "; touch made",
    "substitution": "$(touch made)",
    "backticks": "`touch made`",
    "single quote": "'; touch made; '",
    "double quote": '"; touch made; "',
    "new line": "a\ntouch made",
    "option": "--wrap=touch made",
    "short option": "-rf",
    "glob": "*",
    "wildcard": "{wildcards.experiment}{output}{config}",
    "variable": "$HOME",
    "pipe": "| touch made & touch made > made",
    "climbs": "../../made",
    "absolute": "/made",
    "wide dots": "\uff0e\uff0e/made",
    "turned round": "a\u202egnp.exe",
    "null": "a\x00b",
    "long": "a" * 5000,
    "escape": "\x1b]0;made\x07",
}


def text_keys() -> Iterator[str]:
    """Every key that takes text, dotted; also in lists and in groups of free names."""
    for dotted in dotted_keys():
        field = field_at(tuple(dotted.split(".")))
        assert field is not None
        if group_of(field) is None and "str" in str(field.annotation):
            yield dotted


KEYS = sorted(text_keys())
CHOSEN = {"model", "hardware", "recipe", "experiment"}


def filled(payload: str) -> dict[str, Any]:
    """That value under every key that takes text."""
    values: dict[str, Any] = {"env": {"SOME_NAME": payload}}
    for dotted in KEYS:
        field = field_at(tuple(dotted.split(".")))
        assert field is not None
        is_list = any("list" in str(part) for part in alternatives(field.annotation))
        if dotted != "env" and dotted not in CHOSEN:
            values[dotted] = [payload] if is_list else payload
    return values


def accepted(payload: str, experiment: str = "x") -> dict[str, Any]:
    """The keys of `filled` that are not refused, and their values; under the current directory."""
    values = filled(payload)
    while wrong := refused(values, experiment):
        kept = {k: v for k, v in values.items() if not any(_within(w, k) for w in wrong)}
        # What is fine by itself, but not beside the experiment's own keys.
        if len(kept) == len(values):
            others = ("tokenizer_model", "hf_dataset.")
            kept = {k: v for k, v in values.items() if not k.startswith(others)}
        assert len(kept) < len(values), wrong
        values = kept
    return values


def refused(values: dict[str, Any], experiment: str) -> set[str]:
    """The keys that are complained of, each in one line that can be shown."""
    try:
        load(experiment, values, stages=())
    except ConfigError as error:
        problems = error.problems
    else:
        return set()
    assert all(str(problem).isprintable() for problem in problems)
    return {problem.key for problem in problems}


def _within(wrong: str, key: str) -> bool:
    return wrong == key or wrong.startswith(f"{key}.") or key.startswith(f"{wrong}.")
