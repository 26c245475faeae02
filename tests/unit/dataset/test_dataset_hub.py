"""Hugging Face data sets; a local directory stands for the hub, which the library treats alike."""

from __future__ import annotations

import builtins
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_text import DOCUMENTS, Made

from primus.dataset import build, sources
from primus.dataset.build import DataRequest, build_data
from primus.dataset.core import IndexedDataset
from primus.dataset.hub import HubPart, open_dataset
from primus.dataset.sources import HubDataset, hub_parts
from primus.errors import DataError, UnavailableError


class Rows:
    """As much of a streaming data set as is used."""

    def __init__(self, rows: list[dict[str, Any]], start: int = 0) -> None:
        self._rows, self._start = rows, start
        self.read = 0

    def skip(self, count: int) -> Rows:
        return Rows(self._rows, self._start + count)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows[self._start :])


def rows_of(texts: list[str]) -> list[dict[str, Any]]:
    return [{"text": text, "other": object()} for text in texts]


def hub_request(**changes: Any) -> DataRequest:
    values = {"dataset": "small", "hub": HubDataset(path="some/set"), "workers": 1}
    return DataRequest(**(values | changes))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 50 rows over the documents and a row without text."""

    def open_rows(*_: object) -> tuple[Any, str]:
        return Rows([*rows_of(DOCUMENTS), {"text": None}]), "some/set/default@abc:train"

    def parts(dataset: HubDataset, json_key: str, rows_of_last: Any) -> Any:
        return hub_parts(dataset, json_key, rows_of_last, rows=50)

    monkeypatch.setattr("primus.dataset.hub.open_dataset", open_rows)
    monkeypatch.setattr(build, "hub_parts", parts)


@pytest.mark.usefixtures("small_parts")
def test_rows_become_documents_in_parts(made: Made, tmp_path: Path) -> None:
    output = tmp_path / "data" / "manifest.json"
    manifest = build_data(hub_request(), made.tokenizer, output)
    label = "some/set/default@abc:train"
    assert list(manifest.inputs) == [f"{label}[{i}:{i + 50}]" for i in (0, 50, 100)]
    assert [entry.documents for entry in manifest.inputs.values()] == [50, 50, 20]
    assert manifest.skipped_lines == 1
    assert manifest.files["tokens.bin"] == made.data.files["tokens.bin"]


@pytest.mark.usefixtures("small_parts")
def test_a_stopped_download_goes_on_after_its_last_part(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "data" / "manifest.json"
    started: list[str] = []
    records = HubPart.records

    def interrupted(part: HubPart) -> Any:
        started.append(part.name)
        if len(started) == 3:
            raise KeyboardInterrupt
        return records(part)

    with monkeypatch.context() as patch:
        patch.setattr(HubPart, "records", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_data(hub_request(), made.tokenizer, output)
        assert [name.split("[")[1] for name in started] == ["0:50]", "50:100]", "100:150]"]
        build_data(hub_request(), made.tokenizer, output)
    assert started[3:] == started[2:3]
    assert output.exists()
    dataset = IndexedDataset(str(output.with_name("tokens")))
    assert len(dataset) == len(DOCUMENTS)


@pytest.mark.usefixtures("small_parts")
def test_a_finished_data_set_needs_no_network(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "data" / "manifest.json"
    manifest = build_data(hub_request(), made.tokenizer, output)
    monkeypatch.setattr(sources, "hub_parts", None)
    monkeypatch.setattr(build, "hub_parts", None)
    assert build_data(hub_request(), made.tokenizer, output) == manifest


def test_files_and_a_hub_data_set_together_are_refused(made: Made, tmp_path: Path) -> None:
    wanted = hub_request(data_path=[str(made.texts[0])])
    with pytest.raises(DataError, match="set one, not both"):
        build_data(wanted, made.tokenizer, tmp_path / "manifest.json")


def test_without_the_package_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UnavailableError, match="needs the package datasets"):
        open_dataset("some/set", None, None, "train")


READ = """
import sys
from primus.dataset.hub import HubPart, open_dataset
from primus.errors import UnavailableError
dataset, label = open_dataset(sys.argv[1], None, None, "train")
part = HubPart(dataset, label, 1, 2, "text")
print(part.name.removeprefix(sys.argv[1]), [record.line for record in part.records()])
try:
    open_dataset("no/such-set", None, None, "train")
except UnavailableError as error:
    print(error)
"""


@pytest.mark.slow
def test_the_real_library_streams_a_directory_and_fails_clearly_offline(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the extra 'hub' is not installed")
    lines = [json.dumps({"text": text}) for text in DOCUMENTS[:4]]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("\n".join(lines))
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "set")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "/default@local:train[1:3] [2, 3]"
    assert second.startswith("hf_dataset: no/such-set: cannot be loaded:")
