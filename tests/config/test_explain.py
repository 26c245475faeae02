"""Which key is named, from frozen settings alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from config_root import Root

from primus.config.identity import closure, identities
from primus.config.load import load
from primus.config.paths import artifact, settings_file
from primus.config.pipeline import freeze
from primus.config.schema.keys import STAGES
from primus.config.schema.settings import Settings
from primus.explain import Verdict, explain, main


def resolve(root: Root, **overrides: Any) -> Settings:
    return load("x", overrides, root=root.path).settings


def finish(root: Root, **overrides: Any) -> None:
    """Leave behind what the stages leave behind, as far as `explain` looks at it."""
    settings = resolve(root, **overrides)
    made = identities(settings)
    for stage in {*closure(settings, "report"), *closure(settings, "export")}:
        freeze(made[stage], root.path / settings_file(made[stage]))
        path = root.path / artifact(made[stage])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"settings": {**made[stage].identity, **made[stage].extent}}))


# Start weights and an evaluation are for those who ask for them.
USUAL = tuple(stage for stage in STAGES if stage not in ("weights", "evaluate"))


def verdicts(root: Root, **overrides: Any) -> dict[str, Verdict]:
    found = explain(resolve(root, **overrides), root.path)
    return {verdict.stage: verdict for verdict in found}


def running(found: dict[str, Verdict]) -> set[str]:
    return {stage for stage, verdict in found.items() if verdict.would_run}


def test_before_the_first_run(root: Root) -> None:
    found = verdicts(root)
    assert list(found) == list(USUAL)
    assert running(found) == set(USUAL)
    assert found["tokenizer"].reason == "not made yet"


def test_after_a_run_and_after_a_reverted_edit(root: Root) -> None:
    finish(root)
    assert running(verdicts(root)) == set()
    finish(root, lr=1e-3)
    assert running(verdicts(root)) == set()


@pytest.mark.parametrize(
    ("overrides", "first", "stages"),
    [
        ({"lr": 1e-3}, "train", {"train", "export", "report"}),
        ({"gemm_tuning.budget_minutes": 2}, "tune", {"tune", "train", "export", "report"}),
        ({"hidden_size": 64}, "shapes", {"shapes", "tune", "train", "export", "report"}),
    ],
)
def test_a_changed_key_and_its_consequences(
    root: Root, overrides: dict[str, Any], first: str, stages: set[str]
) -> None:
    finish(root)
    found = verdicts(root, **overrides)
    assert running(found) == stages
    key = next(iter(overrides))
    assert key in [change.key for change in found[first].changes]
    assert found[first].reason == "changed"
    assert found["report"].reason == "train, export would run"
    assert found["export"].because_of == ["train"]


def test_options_re_run_nothing_and_are_named(root: Root) -> None:
    finish(root)
    found = verdicts(root, log_interval=1)
    assert running(found) == set()
    assert [str(change) for change in found["train"].options] == ["log_interval: 5 -> 1"]


def test_the_extent_by_the_word_of_the_artefact(root: Root) -> None:
    finish(root)
    found = verdicts(root, train_iters=400)
    assert running(found) == {"train", "export", "report"}
    assert found["train"].reason == "extent changed"
    run = Path(artifact(identities(resolve(root))["train"])).parent
    assert found["train"].note == f"continues the run in {run}"
    finish(root, train_iters=400)
    assert running(verdicts(root, train_iters=400)) == set()
    shorter = verdicts(root)
    assert running(shorter) == {"train", "export", "report"}
    assert shorter["train"].note == f"the run in {run} went further already; nothing is undone"


def test_without_a_length_of_the_schedule_more_iterations_are_a_new_run(root: Root) -> None:
    root.edit("lr_decay_iters: 200\n", "")
    finish(root)
    found = verdicts(root, train_iters=400)["train"]
    assert found.note == (
        "a new run: the schedule's length follows train_iters; write lr_decay_iters: 200 to "
        "continue the old one"
    )


def test_lost_settings(root: Root) -> None:
    finish(root)
    for path in root.path.glob("output/settings/x/train.*.json"):
        path.unlink()
    found = verdicts(root)
    assert found["train"].reason == "its frozen settings are missing"
    assert running(found) == {"train", "export", "report"}


def test_without_tuning_its_stages_are_left_out(root: Root) -> None:
    found = verdicts(root, **{"gemm_tuning.enabled": False})
    assert set(USUAL) - set(found) == {"shapes", "tune"}


def test_an_evaluation_is_explained_once_there_is_one(root: Root) -> None:
    finish(root)
    made = identities(resolve(root))["evaluate"]
    freeze(made, root.path / settings_file(made))
    path = root.path / artifact(made)
    path.write_text(json.dumps({"settings": made.extent}))
    assert running(verdicts(root)) == set()
    found = verdicts(root, **{"evaluation.stride": 7})
    assert running(found) == {"evaluate", "report"}
    assert [str(change) for change in found["evaluate"].changes] == ["evaluation.stride: null -> 7"]
    assert running(verdicts(root, **{"evaluation.batch_size": 7})) == set()
    assert running(verdicts(root, train_iters=400)) == {"train", "export", "evaluate", "report"}


def test_the_command(root: Root, capsys: pytest.CaptureFixture[str]) -> None:
    finish(root)
    main(["x", "--config", "lr=1e-3"])
    lines = capsys.readouterr().out.splitlines()
    key = identities(resolve(root, lr=1e-3))["train"].key
    assert f"train      {key}  would run   changed" in lines
    assert lines[lines.index(f"train      {key}  would run   changed") + 1].strip() == (
        "lr: 0.003 -> 0.001"
    )
    main(["x", "--json"])
    assert [v["would_run"] for v in json.loads(capsys.readouterr().out)] == [False] * len(USUAL)
