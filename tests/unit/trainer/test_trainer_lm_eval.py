"""Tasks of lm-evaluation-harness asked of an export; those that need the extra are left out
without it."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer_evaluate import evaluated, run, samples  # noqa: F401
from test_trainer_export import Exported

from primus.errors import PrimusError, UnavailableError, UserError
from primus.huggingface.harness import Tasks, harness_of, open_tasks
from primus.huggingface.load import load_model

pytestmark = pytest.mark.usefixtures("single_rank", "eager")

# Of other packages, which the extra brings.
needs_it = [
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="the extra 'lm-eval' is not installed"),
    pytest.mark.filterwarnings("ignore"),
]
QUESTIONS = [
    {"question": "It was the best of", "choices": ["times", "worst"], "answer": 0},
    {"question": "It was the worst of", "choices": ["best", "times"], "answer": 1},
    {"question": "It was the best", "choices": [" of times", " zzz qqq"], "answer": 0},
]
FOUND: dict[str, Any] = {
    "results": {
        "a": {"alias": "a", "acc,none": 0.5, "acc_stderr,none": 0.25, "f1,get": 0.1},
        "g": {"alias": "g", "acc,none": 0.75, "acc_stderr,none": "N/A", "word,none": "text"},
    },
    "versions": {"a": 1.0},
    "n-shot": {"a": 2, "g": "N/A"},
    "n-samples": {"a": {"original": 9, "effective": 4}},
}


def test_numbers_alone_are_kept() -> None:
    found = harness_of(FOUND, "0.4.9")
    assert found.library == "0.4.9"
    first, group = found.tasks["a"], found.tasks["g"]
    assert (first.version, first.num_fewshot, first.samples) == ("1.0", 2, 4)
    metrics = [(m.name, m.filter, m.value, m.stderr) for m in first.metrics]
    assert metrics == [("acc", "none", 0.5, 0.25), ("f1", "get", 0.1, None)]
    assert (group.version, group.num_fewshot, group.samples) == ("", None, None)
    assert [(m.name, m.value, m.stderr) for m in group.metrics] == [("acc", 0.75, None)]


def asked(*names: str, include: Path | None = None) -> Tasks:
    path = str(include) if include else None
    return Tasks(names=names, include_path=path, num_fewshot=None, limit=None)


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="the library is here")
def test_without_the_library_the_fix_is_named() -> None:
    with pytest.raises(UnavailableError, match=r"lm_eval_tasks = mine: .* Fix: pip install"):
        open_tasks(asked("mine"))


def own_tasks(path: Path) -> Path:
    """A directory with one task and its questions; nothing of it needs a network."""
    path.mkdir()
    (path / "questions.jsonl").write_text("\n".join(json.dumps(one) for one in QUESTIONS))
    (path / "mine.yaml").write_text(
        "task: mine\n"
        "dataset_path: json\n"
        "dataset_kwargs: {data_files: {test: " + str(path / "questions.jsonl") + "}}\n"
        "test_split: test\n"
        "output_type: multiple_choice\n"
        'doc_to_text: "{{question}}"\n'
        "doc_to_choice: choices\n"
        "doc_to_target: answer\n"
        "metric_list: [{metric: acc}]\n"
        "metadata: {version: 3.0}\n"
    )
    return path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


@torch.no_grad()
def by_hand(directory: Path) -> float:
    """Share of the questions whose likelier choice is the right one."""
    loaded = load_model(directory, torch.device("cpu"))
    right = 0
    for one in QUESTIONS:
        nats = []
        for choice in one["choices"]:
            before = loaded.tokenizer(one["question"], add_special_tokens=False)["input_ids"]
            # As the library joins them; a blank belongs to the choice.
            text = one["question"] + " " + choice if choice[:1] != " " else one["question"] + choice
            ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
            logits = loaded.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            places = range(len(before), len(ids))
            nats.append(-sum(float(logits[place - 1, ids[place]]) for place in places))
        right += nats.index(min(nats)) == one["answer"]
    return right / len(QUESTIONS)


@pytest.mark.usefixtures("offline")
class TestWithTheLibrary:
    pytestmark = needs_it

    def test_a_task_of_ones_own(
        self,
        run: Exported,  # noqa: F811
        samples: Path,  # noqa: F811
        tmp_path: Path,
    ) -> None:
        include = own_tasks(tmp_path / "tasks")
        keys = {"lm_eval_tasks": ["mine"], "lm_eval_include_path": str(include)}
        found = evaluated(run, samples, tmp_path / "eval.json", **keys)
        assert found.lm_eval is not None
        (score,) = found.lm_eval.tasks.values()
        assert (score.version, score.num_fewshot, score.samples) == ("3.0", 0, 3)
        (metric,) = score.metrics
        assert metric.name == "acc"
        assert metric.value == pytest.approx(by_hand(run.directory))
        assert metric.stderr is not None
        spread = math.sqrt(metric.value * (1 - metric.value) / (len(QUESTIONS) - 1))
        assert metric.stderr == pytest.approx(spread)
        few = evaluated(run, samples, tmp_path / "few.json", lm_eval_limit=1, **keys)
        assert few.lm_eval is not None
        assert few.lm_eval.tasks["mine"].samples == 1
        # What is always measured is as without.
        plain = evaluated(run, samples, tmp_path / "plain.json")
        assert (plain.lm_eval, plain.loss) == (None, found.loss)

    def test_a_task_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(
            UserError, match=r"lm_eval_tasks = mine: no such task in .* Fix: a name"
        ):
            open_tasks(asked("mine"))
        include = own_tasks(tmp_path / "tasks")
        assert open_tasks(asked("mine", include=include)) is not None

    def test_data_that_cannot_be_had(
        self,
        run: Exported,  # noqa: F811
        samples: Path,  # noqa: F811
        tmp_path: Path,
    ) -> None:
        include = own_tasks(tmp_path / "tasks")
        (include / "questions.jsonl").unlink()
        keys = {"lm_eval_tasks": ["mine"], "lm_eval_include_path": str(include)}
        with pytest.raises(PrimusError, match="lm-evaluation-harness 0"):
            evaluated(run, samples, tmp_path / "eval.json", **keys)
        assert not (tmp_path / "eval.json").exists()
