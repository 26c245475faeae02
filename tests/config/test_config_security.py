"""No value of a configuration is taken for shell, for code, or for another option or path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from config_root import EXPERIMENT, Root

from primus.config.load import load
from primus.config.pipeline import Pipeline
from primus.errors import ConfigError
from primus.slurm.job import Job
from tests.hostile_values import CHOSEN, KEYS, PAYLOADS, accepted


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
