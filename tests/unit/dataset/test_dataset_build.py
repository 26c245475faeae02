from __future__ import annotations

import fcntl
import json
import math
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_text import DOCUMENTS, Made

from primus.artifacts.tokens import DataManifest
from primus.dataset import build, tokenize
from primus.dataset.build import DataRequest, build_data, load_data
from primus.dataset.core import DType, IndexedDataset
from primus.dataset.text import Record
from primus.dataset.tokenizer import load_tokenizer, read_tokenizer
from primus.errors import ArtifactError, DataError, RunConflictError


def request(made: Made, **changes: Any) -> DataRequest:
    values = {"dataset": "small", "data_path": [str(path) for path in made.texts], "workers": 1}
    return DataRequest(**(values | changes))


def from_text(made: Made, tmp_path: Path, content: str, name: str = "x.jsonl", **changes: Any):
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    wanted = request(made, data_path=[str(path)], **changes)
    return build_data(wanted, made.tokenizer, tmp_path / "data" / "manifest.json")


def read_back(manifest_path: Path, manifest: DataManifest) -> list[list[int]]:
    dataset = IndexedDataset(str(manifest_path.parent / manifest.path_prefix))
    return [dataset[index].tolist() for index in range(len(dataset))]


def direct(made: Made, texts: list[str]) -> list[list[int]]:
    tokenizer, eod = made.tokenizer.tokenizer(), made.tokenizer.manifest.eod_id
    return [[*tokenizer.encode(text, add_special_tokens=False).ids, eod] for text in texts]


def test_the_token_files_hold_the_documents_in_order(made: Made) -> None:
    assert read_back(made.data_path, made.data) == direct(made, DOCUMENTS)


def test_the_manifest_counts_what_is_there(made: Made) -> None:
    tokens = [token for document in direct(made, DOCUMENTS) for token in document]
    data = made.data
    assert data.documents == len(DOCUMENTS)
    assert data.tokens == len(tokens) == sum(entry.tokens for entry in data.inputs.values())
    assert data.characters == sum(map(len, DOCUMENTS))
    assert data.dtype == DType.optimal_dtype(300).__name__ == "uint16"
    assert list(data.inputs) == [str(path) for path in made.texts]
    assert (data.skipped_lines, data.empty_documents) == (0, 0)
    assert data.tokenizer_fingerprint == made.tokenizer.manifest.fingerprint
    counts = Counter(tokens)
    entropy = -sum(n / len(tokens) * math.log(n / len(tokens)) for n in counts.values())
    assert data.unigram_entropy == pytest.approx(entropy, rel=1e-12)


def test_nothing_but_the_artefact_is_left(made: Made) -> None:
    names = {path.name for path in made.data_path.parent.iterdir()}
    assert names == {".lock", ".manifest.json", "manifest.json", "tokens.bin", "tokens.idx"}


def test_more_workers_give_the_same(made: Made, tmp_path: Path) -> None:
    output = tmp_path / "manifest.json"
    assert build_data(request(made, workers=2), made.tokenizer, output) == made.data
    assert output.read_bytes() == made.data_path.read_bytes()


def test_documents_may_go_without_an_end_token(made: Made, tmp_path: Path) -> None:
    output = tmp_path / "manifest.json"
    manifest = build_data(request(made, append_eod=False), made.tokenizer, output)
    expected = [document[:-1] for document in direct(made, DOCUMENTS)]
    assert read_back(output, manifest) == expected


def test_a_text_without_tokens_counts_as_empty(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads(made.tokenizer.json_path.read_text())
    content["normalizer"] = {"type": "Replace", "pattern": {"String": "x"}, "content": ""}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    records = [Record(1, b'{"text": "x"}'), Record(2, b'{"text": "xa"}')]
    expected = made.tokenizer.tokenizer().encode("a", add_special_tokens=False).ids
    monkeypatch.setattr(tokenize, "_tokenizer", read_tokenizer(path), raising=False)
    for end in (None, 7):
        recipe = tokenize.Recipe(tokenizer_json=path, json_key="text", eod_id=end)
        monkeypatch.setattr(tokenize, "_recipe", recipe, raising=False)
        batch = tokenize.encode("jsonl", records)
        assert batch.tokens.dtype == np.int32
        if end is None:
            assert (batch.tokens.tolist(), batch.lengths, batch.empty) == (expected, [1], 1)
        else:
            assert (batch.tokens.tolist(), batch.lengths) == ([7, *expected, 7], [1, 2])
        nothing = tokenize.encode("jsonl", [])
        assert (nothing.tokens.dtype, nothing.tokens.size, nothing.lengths) == (np.int32, 0, [])


BAD = '{"text": "good"}\n{"text": \n{"body": "x"}\n{"text": "  "}\n\n{"text": "also good"}\n'


@pytest.mark.fault(
    35,
    injected="lines that are no JSON, or lack the key",
    observed="named, skipped and counted",
)
def test_bad_lines_are_named_and_skipped(
    made: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = from_text(made, tmp_path, BAD, max_bad_lines=2)
    assert (manifest.documents, manifest.skipped_lines, manifest.empty_documents) == (2, 2, 1)
    errors = capfd.readouterr().err
    assert f"warning: skipped {tmp_path / 'x.jsonl'}:2: not JSON" in errors
    assert f"warning: skipped {tmp_path / 'x.jsonl'}:3: no field 'text'" in errors


@pytest.mark.fault(
    35,
    injected="more bad lines than allowed",
    observed="an error that names them",
)
def test_too_many_bad_lines_are_an_error_that_names_them(made: Made, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        from_text(made, tmp_path, BAD, max_bad_lines=1)
    assert "max_bad_lines = 1" in str(caught.value)
    assert "x.jsonl:2: not JSON" in str(caught.value)
    assert "x.jsonl:3: no field 'text'" in str(caught.value)
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_a_text_file_in_another_encoding_is_an_error_with_its_line(
    made: Made, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"x\.txt:3: not UTF-8: byte 0xe9"):
        from_text(made, tmp_path, "one\n\f\ncaf\udce9\n", "x.txt")


def test_no_text_is_an_error(made: Made, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.txt: no text"):
        from_text(made, tmp_path, "\n\f\n\n", "x.txt")


def test_neither_files_nor_a_hub_data_set_is_refused(made: Made, tmp_path: Path) -> None:
    wanted = request(made, data_path=[])
    with pytest.raises(DataError, match="data_path, hf_dataset"):
        build_data(wanted, made.tokenizer, tmp_path / "manifest.json")


@pytest.fixture
def copied(made: Made, tmp_path: Path) -> Path:
    """A manifest path of a copy of the data directory, which a test may damage."""
    shutil.copytree(made.data_path.parent, tmp_path / "data")
    return tmp_path / "data" / "manifest.json"


def snapshot(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in directory.iterdir()
            if p.name != ".lock"}  # fmt: skip


@pytest.fixture
def no_build(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("tokenised again")

    monkeypatch.setattr(build, "_build", fail)


@pytest.mark.usefixtures("no_build")
def test_a_second_start_changes_nothing(made: Made, copied: Path) -> None:
    before = snapshot(copied.parent)
    assert build_data(request(made), made.tokenizer, copied) == made.data
    assert snapshot(copied.parent) == before


@pytest.mark.usefixtures("no_build")
def test_a_manifest_that_the_workflow_deleted_comes_back(made: Made, copied: Path) -> None:
    content = copied.read_bytes()
    copied.unlink()
    build_data(request(made), made.tokenizer, copied)
    assert copied.read_bytes() == content


@pytest.mark.fault(
    33,
    injected="token files cut short, changed, missing",
    observed="refused, path and hash are named",
)
@pytest.mark.usefixtures("no_build")
@pytest.mark.parametrize("suffix", [".bin", ".idx"])
@pytest.mark.parametrize("damage", ["delete", "truncate", "xor"])
def test_damaged_token_files_are_refused(
    made: Made, copied: Path, suffix: str, damage: str
) -> None:
    path = copied.with_name(f"tokens{suffix}")
    content = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content[:-2] if damage == "truncate" else content)
    for attempt in (
        lambda: build_data(request(made), made.tokenizer, copied),
        lambda: load_data(copied),
    ):
        with pytest.raises(DataError, match=str(path)) as caught:
            attempt()
        if damage == "xor":
            assert made.data.files[path.name].sha256 in str(caught.value)


def test_a_manifest_that_was_edited_is_refused(copied: Path) -> None:
    content = json.loads(copied.read_text())
    content["files"]["tokens.bin"]["sha256"] = "0" * 64
    copied.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="fingerprint"):
        load_data(copied)


@pytest.mark.fault(
    33,
    injected="text that changed after it was tokenised",
    observed="refused, nothing is touched",
)
def test_changed_text_is_refused_and_nothing_is_touched(made: Made, tmp_path: Path) -> None:
    manifest = from_text(made, tmp_path, '{"text": "old"}')
    old = manifest.inputs[str(tmp_path / "x.jsonl")].file.sha256
    before = snapshot(tmp_path / "data")
    with pytest.raises(DataError, match=r"x\.jsonl: SHA-256 is .*data_version") as caught:
        from_text(made, tmp_path, '{"text": "new"}')
    assert old in str(caught.value)
    assert snapshot(tmp_path / "data") == before


@pytest.mark.parametrize("change", ["added", "removed"])
def test_an_added_or_removed_file_is_refused(made: Made, copied: Path, change: str) -> None:
    names = [str(path) for path in made.texts]
    names = [*names, str(made.root / "text" / "a.txt")][:4] if change == "added" else names[:2]
    if change == "added":
        extra = copied.parent.parent / "extra.txt"
        extra.write_text("more")
        names[3] = str(extra)
    with pytest.raises(DataError, match="data_version"):
        build_data(request(made, data_path=names), made.tokenizer, copied)


@pytest.mark.fault(
    36,
    injected="another tokenizer for the same token files",
    observed="refused",
)
def test_token_files_of_another_tokenizer_are_refused(
    made: Made, copied: Path, tmp_path: Path
) -> None:
    from primus.dataset.make_tokenizer import TokenizerRequest, make_tokenizer

    path = tmp_path / "other" / "manifest.json"
    make_tokenizer(TokenizerRequest(data_path=[str(made.texts[0])], vocab_size=280), path)
    other = load_tokenizer(path)
    with pytest.raises(DataError, match=other.manifest.fingerprint) as caught:
        build_data(request(made), other, copied)
    assert made.tokenizer.manifest.fingerprint in str(caught.value)


def test_a_second_writer_is_refused(made: Made, copied: Path) -> None:
    with open(copied.with_name(".lock"), "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(RunConflictError, match="another process"):
            build_data(request(made), made.tokenizer, copied)


def test_the_entropy_is_counted_over_all_chunks(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    from primus.dataset import merge

    monkeypatch.setattr(merge, "_CHUNK_TOKENS", 7)
    path = made.data_path.with_name("tokens.bin")
    assert merge.unigram_entropy(path, np.uint16, 300) == pytest.approx(made.data.unigram_entropy)


def test_a_worker_imports_neither_torch_nor_megatron() -> None:
    code = (
        "import sys, primus.data, primus.dataset.tokenize, primus.dataset.shards; "
        "print([m for m in ('torch', 'megatron', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
