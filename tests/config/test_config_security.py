"""No value of a configuration is taken for shell, for code, or for another option or path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from config_root import EXPERIMENT, Root

from primus.config.fields import alternatives, dotted_keys, field_at, group_of
from primus.config.load import load
from primus.config.pipeline import Pipeline
from primus.errors import ConfigError
from primus.slurm.job import Job

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


def accepted(payload: str) -> dict[str, Any]:
    """The keys of `filled` that are not refused, and their values."""
    values = filled(payload)
    while wrong := refused(values):
        kept = {k: v for k, v in values.items() if not any(_within(w, k) for w in wrong)}
        # What is fine by itself, but not beside the experiment's own keys.
        if len(kept) == len(values):
            others = ("tokenizer_model", "hf_dataset.")
            kept = {k: v for k, v in values.items() if not k.startswith(others)}
        assert len(kept) < len(values), wrong
        values = kept
    return values


def refused(values: dict[str, Any]) -> set[str]:
    """The keys that are complained of, each in one line that can be shown."""
    try:
        load("x", values, stages=())
    except ConfigError as error:
        problems = error.problems
    else:
        return set()
    assert all(str(problem).isprintable() for problem in problems)
    return {problem.key for problem in problems}


def _within(wrong: str, key: str) -> bool:
    return wrong == key or wrong.startswith(f"{key}.") or key.startswith(f"{wrong}.")


def test_the_schema_is_searched() -> None:
    assert {"slurm.account", "data_path", "json_key", "dataset", "gemm_tuning.store"} <= set(KEYS)


@pytest.mark.fault(
    40,
    injected="shell syntax, options, globs, wildcards, control characters under every text key",
    observed="refused, or one argument of sbatch and one value in the stage's settings",
)
@pytest.mark.parametrize("name", PAYLOADS)
def test_a_value_stays_one_value(root: Root, name: str) -> None:
    payload = PAYLOADS[name]
    root.write(EXPERIMENT)
    values = accepted(payload)
    assert not CHOSEN & values.keys()
    assert "dataset" not in values or name in ("short option", "long")
    plan = Pipeline(values, root.path).plan("x")
    keys = {"account", "partition", "qos", "constraint", "reservation", "exclude"}
    for stage in plan.stages:
        resources = dict(plan.resources(stage))
        job = Job(name="x", key="k", inputs="-", threads=1, resources=resources).options(
            Path("log")
        )
        for option in keys & {k.partition(".")[2] for k in values if k.startswith("slurm.")}:
            wanted = f"--{option}={payload}"
            given = [word for word in job if word.startswith(f"--{option}=")]
            assert given == [wanted] * len(given)
        if "slurm.extra" not in values:
            assert all(word.startswith("--") for word in job)
        again = json.loads(json.dumps(dict(plan.stages[stage].options)))
        assert again == dict(plan.stages[stage].options)
        for text in plan.frozen("report"):
            assert Path(text).parts[:2] == ("output", "settings")
            assert payload not in text
    assert not (root.path / "made").exists()


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_payload_is_no_name(root: Root, name: str) -> None:
    root.write(EXPERIMENT)
    for key in ("model", "hardware", "recipe", "dataset"):
        with pytest.raises(ConfigError):
            load("x", {key: PAYLOADS[name]}, stages=())
    with pytest.raises(ConfigError):
        load(PAYLOADS[name], stages=())


@pytest.mark.parametrize("name", ["é", "x\u0301", "\uff58", "x\u200b", "x" * 65, "x/y", ".x", "-x"])
def test_one_name_has_one_spelling(root: Root, name: str) -> None:
    root.write(EXPERIMENT)
    with pytest.raises(ConfigError, match="is not a name"):
        load("x", {"dataset": name}, stages=())
