"""The report of a run whose export was evaluated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_run import RunSpec, arguments, write_run

from primus.artifacts.evaluation import EvaluationManifest, Harness, TaskMetric, TaskScore
from primus.artifacts.manifest import FileRecord
from primus.artifacts.report import ReportManifest
from primus.artifacts.run import TrainManifest
from primus.errors import ArtifactError
from primus.files import sha256_file
from primus.report import main
from primus.reports.inputs import Paths

# All of it: each test is quick.
pytestmark = pytest.mark.slow


def evaluated(root: Path, **values: Any) -> Paths:
    """A run on disk with an evaluation of its export."""
    paths = write_run(root, RunSpec(restart=False, tuning=False))
    assert paths.export
    train = TrainManifest.load(paths.train)
    found = EvaluationManifest(
        experiment=train.experiment,
        key=train.key,
        checkpoint=train.checkpoints[-1].name,
        export_sha256=sha256_file(paths.export),
        settings={},
        source="valid",
        split="90,8,2",
        documents=12,
        tokens=34567,
        bytes=102400,
        windows=89,
        max_length=512,
        stride=128,
        loss=4.321,
        perplexity=75.26,
        bits_per_byte=2.104,
        dtype="bfloat16",
        device="cuda:0",
        libraries={},
        code_commit="c",
        code_dirty=False,
        seconds=1.0,
    )
    path = paths.train.parent / "eval.json"
    found.model_copy(update=values).save(path)
    return replace(paths, evaluation=path)


def outcome(root: Path, paths: Paths) -> str:
    main(arguments(paths, root / "report.html"))
    checks = ReportManifest.load(root / "report.json").checks
    return next((check.outcome for check in checks if check.name == "Evaluation"), "not shown")


def test_it_is_shown(tmp_path: Path) -> None:
    assert outcome(tmp_path, evaluated(tmp_path)) == "ok"
    page = (tmp_path / "report.html").read_text()
    shown = ("4.321", "75.26", "2.104", "34,567 tokens", "12 documents", "split 90,8,2", "bfloat16")
    assert [word for word in shown if word not in page] == []
    assert 'href="#evaluation"' in page
    main(["--check", str(tmp_path / "report.json")])


def test_tasks_are_shown_with_their_errors_and_versions(tmp_path: Path) -> None:
    metric = TaskMetric(name="acc", filter="none", value=0.4321, stderr=0.0123)
    group = TaskMetric(name="f<1>", filter="get", value=0.5, stderr=None)
    tasks = {
        "mine": TaskScore(version="3.0", num_fewshot=5, samples=1234, metrics=[metric]),
        "group": TaskScore(version="", num_fewshot=None, samples=None, metrics=[group]),
    }
    harness = Harness(library="0.4.13", tasks=tasks)
    settings = {"evaluation": {"lm_eval_limit": 1234}}
    paths = evaluated(tmp_path, lm_eval=harness, settings=settings)
    assert outcome(tmp_path, paths) == "ok"
    page = (tmp_path / "report.html").read_text()
    shown = ("0.4321", "± 0.0123", "lm-evaluation-harness 0.4.13", "f&lt;1&gt;", "1,234 documents")
    assert [word for word in shown if word not in page] == []


def test_files_of_text_are_named(tmp_path: Path) -> None:
    record = FileRecord(size=1, sha256="5" * 64)
    texts = {"held/<b>.txt": record}
    paths = evaluated(tmp_path, source="texts", texts=texts, split=None)
    assert outcome(tmp_path, paths) == "ok"
    page = (tmp_path / "report.html").read_text()
    assert "held/&lt;b&gt;.txt" in page
    assert "5" * 64 in page


def test_without_one_nothing_is_said(tmp_path: Path) -> None:
    paths = replace(evaluated(tmp_path), evaluation=None)
    assert outcome(tmp_path, paths) == "not shown"
    assert "Perplexity" not in (tmp_path / "report.html").read_text()


def test_of_another_export_is_a_warning_and_of_another_run_a_failure(tmp_path: Path) -> None:
    paths = evaluated(tmp_path, export_sha256="0" * 64)
    assert outcome(tmp_path, paths) == "warning"
    paths = evaluated(tmp_path / "other", key="0" * 16)
    with pytest.raises(ArtifactError, match=r"[Ee]val\.json is of \w+ 0000"):
        outcome(tmp_path, paths)
