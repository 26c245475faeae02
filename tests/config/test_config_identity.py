"""The identity of a stage depends on exactly what the schema declares."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any, get_origin

import pytest
import yaml
from config_root import REPOSITORY, Root
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from primus.config.fields import affects, alternatives, group_of, walk
from primus.config.frozen import StageSettings
from primus.config.identity import OF_THE_RUN, closure, identities, stage_identity, upstream_of
from primus.config.load import load
from primus.config.paths import artifact, settings_file
from primus.config.pipeline import Pipeline, freeze
from primus.config.schema.data import HuggingFaceDataset
from primus.config.schema.export import ModelCard
from primus.config.schema.keys import STAGES, UPSTREAM, Stage
from primus.config.schema.settings import Settings
from primus.errors import RunConflictError

LEAVES = [path for path, field in walk() if group_of(field) is None]
LEAVES.remove(("gemm_tuning", "enabled"))  # changes which stages there are: a test of its own
FIELDS = dict(walk())


@cache
def base() -> Settings:
    return load("llama3_8B_tiny", {"hardware": "cpu"}, root=REPOSITORY, stages=()).settings


def keys(settings: Settings) -> dict[Stage, str]:
    return {stage: made.key for stage, made in identities(settings).items()}


def another(value: Any, path: tuple[str, ...]) -> Any:
    """A value of the same type that differs; bounds do not matter here."""
    if value is None:
        kinds = alternatives(FIELDS[path].annotation)
        if any(get_origin(kind) is list for kind in kinds):
            return ["x"]
        return 3 if int in kinds else 1.5 if float in kinds else "other"
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, dict):
        return value | {"NEW": "1"}
    if isinstance(value, list):
        return [*value, "x"]
    return f"{value}x"


def with_value(path: tuple[str, ...], value: Any) -> Settings:
    settings = base()
    if len(path) == 1:
        return settings.model_copy(update={path[0]: value})
    group = getattr(settings, path[0])
    if group is None:
        absent = {"hf_dataset": HuggingFaceDataset(path="org/name"), "model_card": ModelCard()}
        group = absent[path[0]]
    return settings.model_copy(update={path[0]: group.model_copy(update={path[1]: value})})


def downstream(stages: set[Stage]) -> set[Stage]:
    found = set(stages)
    for stage in STAGES:
        if set(UPSTREAM[stage]) & found:
            found.add(stage)
    return found


def declared_stages(path: tuple[str, ...]) -> set[Stage]:
    """What the schema says; a dataset's or experiment's own name stands in paths besides."""
    found = set(affects(FIELDS[path]).identity)
    if len(path) > 1:
        found |= set(affects(FIELDS[path[:1]]).identity)
    return found


@pytest.mark.parametrize("path", LEAVES, ids=".".join)
def test_a_key_changes_the_stages_that_declare_it_and_those_after(path: tuple[str, ...]) -> None:
    before: Any = base()
    for name in path:
        before = getattr(before, name, None)
    changed = {
        stage
        for stage, key in keys(with_value(path, another(before, path))).items()
        if key != keys(base())[stage]
    }
    assert changed == downstream(declared_stages(path))


@hypothesis_settings(deadline=None)  # wall time is no property
@given(st.sampled_from(LEAVES), st.sampled_from(LEAVES))
def test_two_changes_are_the_union_of_both(first: tuple[str, ...], second: tuple[str, ...]) -> None:
    if first[0] == second[0] or "gemm_tuning" in (first[0], second[0]):
        return
    values = {}
    for path in (first, second):
        before: Any = base()
        for name in path:
            before = getattr(before, name, None)
        values[path[0]] = getattr(with_value(path, another(before, path)), path[0])
    both = keys(base().model_copy(update=values))
    changed_stages = {stage for stage in STAGES if both[stage] != keys(base())[stage]}
    assert changed_stages == downstream(declared_stages(first) | declared_stages(second))


@hypothesis_settings(deadline=None, max_examples=25)
@given(st.randoms(use_true_random=False))
def test_order_and_comments_do_not_matter(source: random.Random) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as name:
        root = Root(Path(name))
        before = identities(load("x", root=root.path).settings)
        values = list(yaml.safe_load(root.read()).items())
        source.shuffle(values)
        lines = ["# a comment"]
        for key, value in values:
            lines += [f"# {key}", f"{key}:   {json.dumps(value)}  # {source.random()}", ""]
        root.write("\n".join(lines))
        assert identities(load("x", root=root.path).settings) == before


def test_another_name_of_the_experiment_shares_everything_but_the_paths(root: Root) -> None:
    root.write(root.read(), "configs/y.yaml")
    x, y = (identities(load(name, root=root.path).settings) for name in "xy")
    for stage in STAGES:
        assert x[stage].key == y[stage].key
    assert artifact(x["data"]) == artifact(y["data"])
    assert settings_file(x["data"]) == settings_file(y["data"])
    assert artifact(x["train"]) != artifact(y["train"])


def test_extent_changes_the_settings_but_not_the_run() -> None:
    before, after = base(), base().model_copy(update={"train_iters": 400})
    assert keys(before) == keys(after)
    for stage in STAGES:
        same = settings_file(stage_identity(before, stage)) == settings_file(
            stage_identity(after, stage)
        )
        assert same == (stage != "train")


def test_train_iters_is_identity_where_the_schedule_follows_it(root: Root) -> None:
    root.edit("lr_decay_iters: 200\n", "")
    first, second = (
        keys(load("x", {"train_iters": n}, root=root.path).settings) for n in (200, 400)
    )
    assert {stage for stage in STAGES if first[stage] != second[stage]} == {
        "train",
        "export",
        "evaluate",
        "report",
    }


def test_options_change_nothing() -> None:
    after = base().model_copy(update={"log_interval": 99, "save_interval": 7})
    for stage in STAGES:
        before, now = stage_identity(base(), stage), stage_identity(after, stage)
        assert (before.key, before.digest) == (now.key, now.digest)


def test_without_tuning_the_run_does_not_depend_on_shapes() -> None:
    off = base().gemm_tuning.model_copy(update={"enabled": False})
    settings = base().model_copy(update={"gemm_tuning": off})
    made = identities(settings)
    assert made["tune"].identity == {"gemm_tuning": {"enabled": False}}
    assert upstream_of(settings, "tune") == ()
    assert closure(settings, "report") == ("tokenizer", "data", "samples", "train", "report")
    assert made["train"].key != identities(base())["train"].key
    longer = off.model_copy(update={"budget_minutes": 99.0})
    assert keys(settings.model_copy(update={"gemm_tuning": longer})) == keys(settings)


def test_a_null_is_as_if_not_there() -> None:
    """A new optional key must leave the runs of old releases where they are."""
    from primus.config.identity import digest_of

    assert digest_of({"a": 1, "b": None, "c": {"d": None}}) == digest_of({"a": 1, "c": {}})
    assert digest_of({"a": 1}) != digest_of({"a": 1.5})


def test_what_stands_in_the_run_has_no_identity_of_their_own() -> None:
    """They stand in the run's directory: a key of their own would need a path of its own."""
    for path, field in walk():
        assert not set(OF_THE_RUN) & set(affects(field).identity), path


def test_an_evaluation_changes_nothing_but_itself() -> None:
    """Not the run, its export, nor the settings of any other stage."""
    values = {"texts": ["a.txt"], "json_key": "t", "max_length": 9, "stride": 3, "max_tokens": 5}
    values |= {"lm_eval_tasks": ["t"], "lm_eval_include_path": "p"}
    values |= {"lm_eval_num_fewshot": 2, "lm_eval_limit": 3}
    options = {"batch_size": 1, "device": "cpu"}
    evaluation = base().evaluation
    assert {*values, *options} == set(type(evaluation).model_fields)
    for name, value in (values | options).items():
        after = base().model_copy(
            update={"evaluation": evaluation.model_copy(update={name: value})}
        )
        assert keys(after) == keys(base())
        changed = [
            stage
            for stage in STAGES
            if settings_file(stage_identity(after, stage))
            != settings_file(stage_identity(base(), stage))
        ]
        assert changed == (["evaluate"] if name in values else [])


def test_a_stage_may_read_what_it_declares_and_nothing_else(root: Root, tmp_path: Path) -> None:
    made = identities(load("x", root=root.path).settings)
    for stage in STAGES:
        path = tmp_path / settings_file(made[stage])
        freeze(made[stage], path)
        frozen = StageSettings.load(path, stage)
        assert frozen.key == made[stage].key
        for name, field in Settings.model_fields.items():
            declares = stage in {s for how in vars(affects(field)).values() for s in how}
            assert (name in frozen) >= declares
    train = StageSettings.load(tmp_path / settings_file(made["train"]), "train")
    assert train.lr == 0.003
    assert train.train_iters == 200
    assert train.gemm_tuning.require is True
    with pytest.raises(AttributeError, match="gemm_tuning does not declare the key 'budget"):
        _ = train.gemm_tuning.budget_minutes
    with pytest.raises(AttributeError, match="does not declare the key 'tokenizer_model'"):
        _ = train.tokenizer_model


def test_an_edit_between_plan_and_job_is_refused(root: Root, tmp_path: Path) -> None:
    planned = settings_file(stage_identity(load("x", root=root.path).settings, "train"))
    root.edit("lr: 3.0e-3", "lr: 2.0e-3")
    edited = stage_identity(load("x", root=root.path).settings, "train")
    with pytest.raises(RunConflictError, match="changed since this job was planned"):
        freeze(edited, tmp_path / planned)
    assert not (tmp_path / planned).exists()
    freeze(edited, tmp_path / "by_hand.json")  # a name without a digest promises nothing
    assert StageSettings.load(tmp_path / "by_hand.json", "train").lr == 0.002


def test_a_job_finds_its_experiment_by_key(root: Root) -> None:
    root.write(root.read().replace("lr: 3.0e-3", "lr: 2.0e-3"), "configs/y.yaml")
    root.write("broken: [", "configs/a.yaml")
    made = identities(load("y", root=root.path).settings)
    pipeline = Pipeline({}, root.path)
    assert pipeline.by_key("train", "y", made["train"].key).settings.lr == 0.002
    assert pipeline.by_key("data", "demo", made["data"].key).settings.dataset == "demo"
    with pytest.raises(RunConflictError, match="no experiment has key 000000000000"):
        pipeline.by_key("data", "demo", "0" * 12)
