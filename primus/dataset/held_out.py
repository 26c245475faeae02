"""Documents that a model was not trained on: text files, or the validation share of a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from primus.artifacts.manifest import FileRecord
from primus.artifacts.tokens import DataManifest
from primus.dataset.samples import documents_of
from primus.dataset.text import BadRecord, TextFile, parse
from primus.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Document:
    """Ids without one that ends the document, and the bytes of their text in UTF-8."""

    ids: Sequence[int]
    bytes: int


class Counted:
    """The ids of documents, counted while somebody else walks over them."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self._documents = documents
        self.documents = self.bytes = 0

    def __iter__(self) -> Iterator[Sequence[int]]:
        for document in self._documents:
            self.documents += 1
            self.bytes += document.bytes
            yield document.ids


def text_records(names: Iterable[str], data: DataManifest) -> dict[str, FileRecord]:
    """Size and hash of each file.

    Args:
        data: what the model was trained on.

    Raises:
        DataError: a file cannot be read, or the model was trained on it.
    """
    trained = {item.file.sha256: name for name, item in data.inputs.items()}
    found = {}
    for name in names:
        try:
            found[name] = FileRecord.of(Path(name))
        except OSError as error:
            raise DataError(f"{name}: cannot be read: {error.strerror}") from error
        if found[name].sha256 in trained:
            raise DataError(
                f"evaluation.texts: {name} is {trained[found[name].sha256]}, which is in the "
                "training data. Fix: name other text; without any, the validation share is taken"
            )
    return found


def documents_of_texts(
    names: Iterable[str], json_key: str, tokenizer: Tokenizer
) -> Iterator[Document]:
    """Every document of the files that has text.

    Raises:
        DataError: a file cannot be read, or a record of it is no document.
    """
    for name in names:
        file = TextFile(name)
        for line, raw in file.records():
            try:
                text = parse(file.kind, raw, json_key)
            except BadRecord as error:
                raise DataError(
                    f"{name}:{line + error.lines_below}: {error}. Fix: correct the line, or set "
                    "evaluation.json_key"
                ) from error
            if text.strip():
                ids = tokenizer.encode(text, add_special_tokens=False).ids
                yield Document(ids, len(text.encode()))


def documents_of_share(samples: Path, eod_id: int, tokenizer: Tokenizer) -> Iterator[Document]:
    """Every document of the validation share.

    Raises:
        ArtifactError, DataError: as of `documents_of`.
    """
    for ids in documents_of(samples, "valid"):
        body = [int(token) for token in (ids[:-1] if len(ids) and ids[-1] == eod_id else ids)]
        if body:
            yield Document(body, _size(body, tokenizer))


def first_tokens(
    documents: Iterable[Document], most: int | None, tokenizer: Tokenizer
) -> Iterator[Document]:
    """Documents until they have `most` tokens; the last is cut. None: all."""
    left = most
    for document in documents:
        if left is not None and len(document.ids) >= left:
            ids = document.ids[:left]
            whole = len(ids) == len(document.ids)
            yield document if whole else Document(ids, _size(ids, tokenizer))
            return
        yield document
        left = None if left is None else left - len(document.ids)


def _size(ids: Sequence[int], tokenizer: Tokenizer) -> int:
    return len(tokenizer.decode(list(ids), skip_special_tokens=False).encode())
