"""Text that is predicted: which documents, how many bytes, and never what was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_text import DOCUMENTS, Made

from primus.dataset.held_out import (
    Counted,
    documents_of_share,
    documents_of_texts,
    first_tokens,
    text_records,
)
from primus.errors import DataError


def test_the_validation_share_is_its_documents(made: Made) -> None:
    tokenizer = made.tokenizer.tokenizer()
    found = list(documents_of_share(made.samples_path, made.data.eod_id, tokenizer))
    # 90, 8 and 2 percent of 120 documents.
    expected = DOCUMENTS[108:118]
    assert [tokenizer.decode(document.ids) for document in found] == expected
    assert [document.bytes for document in found] == [len(text.encode()) for text in expected]
    assert not [document for document in found if made.data.eod_id in document.ids]


def test_text_files_are_their_documents(made: Made, tmp_path: Path) -> None:
    tokenizer = made.tokenizer.tokenizer()
    lines, plain = tmp_path / "a.jsonl", tmp_path / "b.txt"
    lines.write_text('{"t": "é the of"}\n\n{"t": " "}\n{"t": "and"}\n')
    plain.write_text("one\n\f\ntwo\n")
    names = [str(lines), str(plain)]
    found = list(documents_of_texts(names, "t", tokenizer))
    texts = ["é the of", "and", "one", "two"]
    assert [tokenizer.decode(document.ids) for document in found] == texts
    assert [document.bytes for document in found] == [9, 3, 3, 3]
    records = text_records(names, made.data)
    for name in names:
        records[name].verify(Path(name))


def test_a_bad_line_is_named(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"txt": "b"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: no field 'text'\. Fix: .*json_key"):
        list(documents_of_texts([str(path)], "text", made.tokenizer.tokenizer()))


def test_training_text_is_not_held_out(made: Made, tmp_path: Path) -> None:
    copy = tmp_path / "another name.txt"
    copy.write_bytes(made.texts[0].read_bytes())
    with pytest.raises(DataError, match=r"another name\.txt is .*a\.txt, which is in the training"):
        text_records([str(copy)], made.data)
    copy.write_bytes(made.texts[0].read_bytes() + b"one more word")
    assert list(text_records([str(copy)], made.data)) == [str(copy)]
    with pytest.raises(DataError, match=r"missing\.txt: cannot be read"):
        text_records([str(tmp_path / "missing.txt")], made.data)


@pytest.mark.parametrize("most", [1, 5, 30, 31, 200])
def test_only_the_first_tokens(made: Made, tmp_path: Path, most: int) -> None:
    tokenizer = made.tokenizer.tokenizer()
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS[:20]))
    every = list(documents_of_texts([str(path)], "text", tokenizer))
    counted = Counted(first_tokens(every, most, tokenizer))
    ids = [token for document in counted for token in document]
    assert ids == [token for document in every for token in document.ids][:most]
    assert counted.bytes == sum(
        len(text.encode())
        for text in [tokenizer.decode(d.ids) for d in first_tokens(every, most, tokenizer)]
    )
    assert list(first_tokens(every, None, tokenizer)) == every
