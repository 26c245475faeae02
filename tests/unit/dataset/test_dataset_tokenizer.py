from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_text import DOCUMENTS, Made
from tokenizers import Tokenizer

from primus.dataset.hub import save_tokenizer
from primus.dataset.make_tokenizer import TokenizerRequest, make_tokenizer
from primus.dataset.tokenizer import load_tokenizer
from primus.errors import DataError, UnavailableError


def request(made: Made) -> TokenizerRequest:
    return TokenizerRequest(data_path=[str(path) for path in made.texts], vocab_size=300)


def snapshot(directory: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_training_again_gives_the_same_bytes(made: Made, tmp_path: Path) -> None:
    make_tokenizer(request(made), tmp_path / "manifest.json")
    first = {path.name: path.read_bytes() for path in made.tokenizer_path.parent.iterdir()}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


def test_the_manifest_describes_the_tokenizer(made: Made) -> None:
    manifest = made.tokenizer.manifest
    assert (manifest.vocab_size, manifest.source) == (300, "trained")
    assert made.tokenizer.tokenizer().id_to_token(manifest.eod_id) == "<|endoftext|>"
    assert set(manifest.trained_on) == {str(path) for path in made.texts}
    assert set(manifest.files) == {
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
    }  # fmt: skip


@given(text=st.text())
def test_any_text_survives(trained: Tokenizer, text: str) -> None:
    ids = trained.encode(text, add_special_tokens=False).ids
    assert trained.decode(ids) == text


@pytest.fixture(scope="module")
def trained(made: Made) -> Tokenizer:
    return made.tokenizer.tokenizer()


def test_transformers_load_it_and_give_the_same_ids(made: Made, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what transformers warns of at import is not ours
        from transformers import AutoTokenizer

        theirs = AutoTokenizer.from_pretrained(made.tokenizer.directory)
        copied_eod = save_tokenizer(str(made.tokenizer.directory), tmp_path / "copy")
    ours, eod = made.tokenizer.tokenizer(), made.tokenizer.manifest.eod_id
    for text in DOCUMENTS[:5]:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids
        assert theirs.decode(ids) == text
    assert theirs.eos_token_id == theirs.bos_token_id == copied_eod == eod


def test_a_tokenizer_is_copied_from_a_directory(made: Made, tmp_path: Path) -> None:
    model = str(made.tokenizer.directory)
    output = tmp_path / "manifest.json"
    manifest = make_tokenizer(TokenizerRequest(model=model), output)
    assert (manifest.source, manifest.trained_on) == (model, {})
    assert manifest.vocab_size == 300
    copied, original = load_tokenizer(output).tokenizer(), made.tokenizer.tokenizer()
    assert copied.encode(DOCUMENTS[0]).ids == original.encode(DOCUMENTS[0]).ids


def test_a_tokenizer_that_cannot_be_had_names_the_key(tmp_path: Path) -> None:
    model = str(tmp_path / "none")
    with pytest.raises(UnavailableError, match=f"tokenizer_model = {model}: cannot be loaded"):
        make_tokenizer(TokenizerRequest(model=model), tmp_path / "manifest.json")


def test_neither_model_nor_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="tokenizer_data_path is empty"):
        make_tokenizer(TokenizerRequest(vocab_size=300), tmp_path / "manifest.json")


def copy_of(made: Made, tmp_path: Path) -> Path:
    shutil.copytree(made.tokenizer_path.parent, tmp_path / "tokenizer")
    return tmp_path / "tokenizer" / "manifest.json"


def test_a_second_start_changes_nothing(made: Made, tmp_path: Path) -> None:
    output = copy_of(made, tmp_path)
    before = snapshot(output.parent)
    make_tokenizer(request(made), output)
    assert snapshot(output.parent) == before


def test_a_manifest_that_the_workflow_deleted_comes_back(made: Made, tmp_path: Path) -> None:
    output = copy_of(made, tmp_path)
    content = output.read_bytes()
    output.unlink()
    make_tokenizer(request(made), output)
    assert output.read_bytes() == content


def test_another_tokenizer_in_its_place_is_refused(made: Made, tmp_path: Path) -> None:
    output = copy_of(made, tmp_path)
    path = output.parent / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="fingerprint") as caught:
        load_tokenizer(output)
    assert made.tokenizer.manifest.fingerprint in str(caught.value)


def test_a_damaged_file_beside_it_is_refused(made: Made, tmp_path: Path) -> None:
    output = copy_of(made, tmp_path)
    with open(output.parent / "tokenizer_config.json", "a") as stream:
        stream.write(" ")
    with pytest.raises(DataError, match=r"tokenizer_config\.json: has .* bytes"):
        load_tokenizer(output)


def test_changed_training_text_is_refused(made: Made, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the old text")
    output = tmp_path / "tokenizer" / "manifest.json"
    wanted = TokenizerRequest(data_path=[str(text)], vocab_size=300)
    make_tokenizer(wanted, output)
    before = snapshot(output.parent)
    text.write_text("the new text")
    with pytest.raises(DataError, match=r"text.txt: SHA-256 is [0-9a-f]{64}.*data_version"):
        make_tokenizer(wanted, output)
    assert snapshot(output.parent) == before
