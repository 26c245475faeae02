"""Trackers: what they are told, over resumes too, and that none of them touches a training.

The real packages are held to it where they are installed (extras `wandb` and `mlflow`); our side of
the interface everywhere, by modules of the same names that are fakes.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import sys
import threading
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from test_report_figures import metrics_row

from primus.artifacts.run import ValidationRow
from primus.config.frozen import StageSettings
from primus.config.identity import identities
from primus.config.load import load
from primus.trainer import trackers
from primus.trainer.metrics import Metrics
from primus.trainer.outcome import read_metrics
from primus.trainer.trackers import TrackedRun, Trackers, wanted

ROOT = Path(__file__).parents[3]
EXPERIMENT = "llama3_8B_tiny"
WANDB = {"wandb_project": "mine", "tensorboard": False}
KEY = "0123456789abcdef" * 2 + "01234567"
MLFLOW = {"mlflow_experiment_name": "mine", "tensorboard": False}


def settings(**values: Any) -> StageSettings:
    made = identities(load(EXPERIMENT, {"hardware": "cpu"} | values, root=ROOT, stages=()).settings)
    return StageSettings.of_key(made["train"], EXPERIMENT)


def validation(iteration: int, loss: float = 3.5) -> ValidationRow:
    return ValidationRow(
        attempt=1, iteration=iteration, time=100.0, loss=loss, batches=1, seconds=1.0
    )


def attempt(
    directory: Path, asked: StageSettings, number: int, first: int, *iterations: int
) -> bool:
    """Log rows as an attempt does that goes on after `first`; whether all trackers ended."""
    run = TrackedRun(
        directory=directory,
        experiment=EXPERIMENT,
        key="0123456789ab",
        attempt=number,
        settings=asked,
        values={"lr": 0.5, "model": "llama3_8B_tiny"},
    )
    metrics = Metrics(directory, train_iters=30, trackers=Trackers(run))
    metrics.begin(first)
    for iteration in iterations:
        metrics.train(metrics_row(iteration, loss=100.0 * number + iteration))
    metrics.valid(validation(iterations[-1]))
    metrics.close()
    return metrics.wait()


def interrupted_and_resumed(directory: Path, asked: StageSettings) -> None:
    """An attempt that logged iterations 5 to 20 is gone on with after the checkpoint at 10."""
    assert attempt(directory, asked, 1, 0, 5, 10, 15, 20)
    assert attempt(directory, asked, 2, 10, 15, 20, 25, 30)


def test_only_tensorboard_is_on_by_itself() -> None:
    assert wanted(settings()) == ["tensorboard"]
    assert wanted(settings(**WANDB)) == ["wandb"]
    assert wanted(settings(wandb_project="a", mlflow_experiment_name="b")) == [
        *("tensorboard", "wandb", "mlflow")
    ]


def test_a_tracker_changes_no_key_of_a_run() -> None:
    asked = {**WANDB, **MLFLOW, "tensorboard_dir": "x", "wandb_exp_name": "y"}
    for stage, made in identities(
        load(EXPERIMENT, {"hardware": "cpu"} | asked, root=ROOT, stages=()).settings
    ).items():
        plain = identities(load(EXPERIMENT, {"hardware": "cpu"}, root=ROOT, stages=()).settings)
        assert (made.key, made.digest) == (plain[stage].key, plain[stage].digest)


def scalars(directory: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(directory))
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars(name)]


def test_tensorboard_shows_the_later_of_two_rows(tmp_path: Path) -> None:
    interrupted_and_resumed(tmp_path, settings())
    assert scalars(tmp_path / "tensorboard", "train/loss") == [
        *((5, 105.0), (10, 110.0)),
        *((15, 215.0), (20, 220.0), (25, 225.0), (30, 230.0)),
    ]
    assert scalars(tmp_path / "tensorboard", "valid/loss") == [(30, 3.5)]
    assert [row.iteration for row in read_metrics(tmp_path)][:4] == [5, 10, 15, 20]


def test_trackers_are_told_how_uneven_the_experts_are(
    tmp_path: Path, fake_wandb: FakeWandB
) -> None:
    run = TrackedRun(
        directory=tmp_path,
        experiment=EXPERIMENT,
        key="0123456789ab",
        attempt=1,
        settings=settings(wandb_project="mine"),
        values={},
    )
    metrics = Metrics(tmp_path, train_iters=10, trackers=Trackers(run))
    metrics.begin(0)
    loads: dict[int, list[float]] = {5: [1.5, 4.0, 1.25, 2.5], 10: [1.0], 15: []}
    for iteration, one in loads.items():
        metrics.train(metrics_row(iteration).model_copy(update={"expert_load": one}))
    metrics.close()
    assert metrics.wait()
    for name, expected in (("max", [(5, 4.0), (10, 1.0)]), ("median", [(5, 2.0), (10, 1.0)])):
        assert scalars(tmp_path / "tensorboard", f"train/expert-load-{name}") == expected
        key = f"train/expert-load-{name}"
        assert [(r["iteration"], r[key]) for r in fake_wandb.rows if key in r] == expected


def test_tensorboard_goes_where_it_is_told(tmp_path: Path) -> None:
    asked = settings(tensorboard_dir=str(tmp_path / "all"))
    assert attempt(tmp_path, asked, 1, 0, 5)
    found = tmp_path / "all" / EXPERIMENT / "0123456789ab"
    assert scalars(found, "train/loss") == [(5, 105.0)]
    assert not (tmp_path / "tensorboard").exists()


@dataclass
class FakeWandB:
    """Stands in for the package `wandb`: what `init` was called with, and the rows."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, float]] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    fail: str = ""
    api_key: str = ""

    def module(self) -> types.ModuleType:
        made = types.ModuleType("wandb")
        made.init = self.init  # type: ignore[attr-defined]
        made.Settings = dict  # type: ignore[attr-defined]
        return made

    def init(self, **given: Any) -> FakeWandB:
        self._may_fail("init")
        self.calls.append(given)
        return self

    def define_metric(self, *_: str, **__: str) -> None:
        self._may_fail("define_metric")

    def log(self, row: dict[str, float]) -> None:
        self._may_fail("log")
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self._may_fail("finish")
        self.ends.append(exit_code)

    def _may_fail(self, where: str) -> None:
        if where == self.fail:
            raise ConnectionError(f"{where}: no such host; key {self.api_key}\nmore")


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandB:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake.module())
    monkeypatch.delitem(sys.modules, "primus.trainer.trackers.wandb", raising=False)
    return fake


def test_wandb_is_offline_and_one_run(tmp_path: Path, fake_wandb: FakeWandB) -> None:
    interrupted_and_resumed(tmp_path, settings(**WANDB))
    first, second = fake_wandb.calls
    assert (first["mode"], first["project"], first["resume"]) == ("offline", "mine", None)
    assert first["id"] == second["id"] == f"{EXPERIMENT}-0123456789ab"
    assert first["dir"] == str(tmp_path)
    assert first["config"] == {"lr": 0.5, "model": "llama3_8B_tiny"}
    losses = [(r["iteration"], r["train/loss"]) for r in fake_wandb.rows if "train/loss" in r]
    assert losses == [(5, 105.0), (10, 110.0), (15, 115.0), (20, 120.0), (25, 225.0), (30, 230.0)]
    assert [r["iteration"] for r in fake_wandb.rows if "valid/loss" in r] == [20, 30]
    assert fake_wandb.ends == [1, 0]


def test_wandb_is_online_where_its_own_variable_says_so(
    tmp_path: Path, fake_wandb: FakeWandB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    assert attempt(tmp_path, settings(**WANDB, wandb_exp_name="x"), 1, 0, 5)
    (call,) = fake_wandb.calls
    assert (call["mode"], call["resume"], call["name"]) == ("online", "allow", "x")


@pytest.mark.parametrize("where", ["init", "define_metric", "log", "finish"])
def test_a_tracker_that_fails_is_told_once_and_left(
    tmp_path: Path,
    fake_wandb: FakeWandB,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: str,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    fake_wandb.fail, fake_wandb.api_key = where, "0123456789abcdef"
    with caplog.at_level(logging.WARNING):
        assert attempt(tmp_path, settings(**WANDB), 1, 0, 5, 10)
    (message,) = caplog.messages
    assert message == (
        f"wandb: ConnectionError: {where}: no such host; key <WANDB_API_KEY> more. "
        "Training goes on without it"
    )
    assert [row.iteration for row in read_metrics(tmp_path)] == [5, 10, 10]


def test_a_package_that_is_missing_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.delitem(sys.modules, "primus.trainer.trackers.mlflow", raising=False)
    with caplog.at_level(logging.WARNING):
        assert attempt(tmp_path, settings(**MLFLOW), 1, 0, 5)
    (message,) = caplog.messages
    assert "pip install -e '.[mlflow]'. Training goes on" in message


@pytest.fixture
def stuck(fake_wandb: FakeWandB, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A tracker that waits for ever, as for a network, until the event is set."""
    free = threading.Event()
    monkeypatch.setattr(fake_wandb, "log", lambda _: free.wait())
    monkeypatch.setattr(trackers, "_CLOSE_SECONDS", 0.05)
    yield free
    free.set()


def test_a_tracker_that_hangs_is_not_waited_for(
    tmp_path: Path, stuck: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert not attempt(tmp_path, settings(**WANDB), 1, 0, 5, 10)
    (message,) = caplog.messages
    assert message.startswith("wandb: it has not ended for ")
    assert [row.iteration for row in read_metrics(tmp_path)] == [5, 10, 10]


def test_rows_that_wait_are_bounded(
    tmp_path: Path,
    stuck: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(trackers, "_WAITING", 3)
    with caplog.at_level(logging.WARNING):
        assert not attempt(tmp_path, settings(**WANDB), 1, 0, *range(1, 30))
    assert caplog.messages == ["wandb: 3 rows wait for it. Training goes on without it"]
    assert len(read_metrics(tmp_path)) == 30


class FakeMlflowClient:
    """Stands in for mlflow.MlflowClient: a store that keeps every value that it is given."""

    stores: ClassVar[dict[str, FakeMlflowClient]] = {}

    def __new__(cls, tracking_uri: str) -> FakeMlflowClient:
        return cls.stores.setdefault(tracking_uri, super().__new__(cls))

    def __init__(self, tracking_uri: str) -> None:
        self.__dict__.setdefault("values", [])
        self.__dict__.setdefault("states", [])
        self.__dict__.setdefault("params", {})
        self.__dict__.setdefault("made", {})

    def get_experiment_by_name(self, name: str) -> Any:
        return types.SimpleNamespace(experiment_id="1") if self.made else None

    def create_experiment(self, name: str) -> str:
        return "1"

    def search_runs(self, experiments: list[str], filter_string: str, max_results: int) -> Any:
        tag, _, value = filter_string.removeprefix("tags.").partition(" = ")
        assert (experiments, max_results) == (["1"], 1)
        return self.made.get((tag.strip("`"), value.strip("'")), [])

    def create_run(self, number: str, run_name: str, tags: dict[str, str]) -> Any:
        run = types.SimpleNamespace(info=types.SimpleNamespace(run_id="r", run_name=run_name))
        self.made |= {tag: [run] for tag in tags.items()}
        return run

    def log_param(self, run_id: str, key: str, value: str) -> None:
        assert key not in self.params
        self.params[key] = value

    def update_run(self, run_id: str, status: str) -> None:
        self.states.append(status)

    def set_terminated(self, run_id: str, status: str) -> None:
        self.states.append(status)

    def get_metric_history(self, run_id: str, name: str) -> Any:
        return [metric for metric in self.values if metric.key == name]

    def log_batch(self, run_id: str, metrics: list[Any]) -> None:
        self.values += metrics


@dataclass
class FakeMetric:
    """Stands in for mlflow.entities.Metric."""

    key: str
    value: float
    timestamp: int
    step: int


@pytest.fixture
def fake_mlflow(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeMlflowClient]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    package, entities = types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
    package.MlflowClient = FakeMlflowClient  # type: ignore[attr-defined]
    entities.Metric = FakeMetric  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", package)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setattr(FakeMlflowClient, "stores", {})
    return FakeMlflowClient.stores


def test_mlflow_is_a_store_in_the_run_and_one_run(
    tmp_path: Path, fake_mlflow: dict[str, FakeMlflowClient]
) -> None:
    interrupted_and_resumed(tmp_path, settings(**MLFLOW))
    ((place, store),) = fake_mlflow.items()
    assert place == (tmp_path / "mlflow").as_uri()
    losses = [(m.step, m.value) for m in store.values if m.key == "train/loss"]
    assert losses == [(5, 105.0), (10, 110.0), (15, 115.0), (20, 120.0), (25, 225.0), (30, 230.0)]
    assert [m.step for m in store.values if m.key == "valid/loss"] == [20, 30]
    assert store.params == {"lr": "0.5", "model": "llama3_8B_tiny"}
    assert store.states == ["KILLED", "RUNNING", "FINISHED"]


def test_mlflow_goes_where_its_own_variable_says(
    tmp_path: Path, fake_mlflow: dict[str, FakeMlflowClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "fake://elsewhere")
    assert attempt(tmp_path, settings(**MLFLOW), 1, 0, 5)
    assert list(fake_mlflow) == ["fake://elsewhere"]


def holding(directory: Path, text: str) -> list[Path]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return [path for path in files if text.encode() in path.read_bytes()]


def test_the_real_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", KEY)
    interrupted_and_resumed(tmp_path, settings(**MLFLOW))
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    losses = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")]
    assert losses == [(5, 105.0), (10, 110.0), (15, 115.0), (20, 120.0), (25, 225.0), (30, 230.0)]
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.5", "model": "llama3_8B_tiny"}
    assert run.data.metrics["valid/loss"] == 3.5
    assert holding(tmp_path, KEY) == []


def records(path: Path) -> Iterator[bytes]:
    """What a .wandb file holds: blocks of 32 KiB with pieces of records, after 7 bytes."""
    content, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def history(files: list[Path]) -> list[dict[str, Any]]:
    """The rows of offline runs, as wandb wrote them."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for path in files:
        for data in records(path):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.HasField("history"):
                items = record.history.item
                names = [item.key or "/".join(item.nested_key) for item in items]
                values = [json.loads(item.value_json) for item in items]
                rows.append(dict(zip(names, values, strict=True)))
    return rows


def test_the_real_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    interrupted_and_resumed(tmp_path, settings(**WANDB))
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert [path.name for path in files] == [f"run-{EXPERIMENT}-0123456789ab.wandb"] * 2
    rows = history(files)
    losses = [(row["iteration"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert losses == [(5, 105.0), (10, 110.0), (15, 115.0), (20, 120.0), (25, 225.0), (30, 230.0)]
    assert [row["iteration"] for row in rows if "valid/loss" in row] == [20, 30]
    assert holding(tmp_path, KEY) == []
    assert holding(tmp_path, EXPERIMENT) != [], "the search finds what is there"
