"""Tokenizers and data sets of the Hugging Face hub.

Their libraries read a token from the environment (HF_TOKEN) by themselves; it is never seen here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from primus.artifacts.manifest import FileRecord
from primus.dataset.text import Kind, Record
from primus.errors import DataError, UnavailableError


def save_tokenizer(model: str, directory: Path) -> int:
    """Copy the tokenizer `model`, a hub id or a directory, into `directory`.

    No code of the repository is run. Later stages read the copy and need no network.

    Returns:
        The id of its end-of-sequence token, which ends a document.

    Raises:
        UnavailableError: it cannot be had (no such tokenizer, no network, not permitted).
        DataError: it has no tokenizer.json form or no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UnavailableError(
            f"tokenizer_model = {model}: cannot be loaded: {reason}. Fix: check the name, the "
            "network and HF_TOKEN, or give a directory that holds the tokenizer"
        ) from error
    if not tokenizer.is_fast:
        raise DataError(
            f"tokenizer_model = {model}: has no tokenizer.json. Fix: use its fast version"
        )
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"tokenizer_model = {model}: names no eos_token, which ends a document. "
            "Fix: set eos_token in its tokenizer_config.json"
        )
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(directory)
    return int(tokenizer.eos_token_id)


class HubPart:
    """Some consecutive rows of a hub data set, streamed.

    Attributes:
        name: names the data set, its revision and the rows.
        kind: rows come as JSON lines with one field.
        size, position: unknown beforehand, hence 0.
    """

    kind: Kind = "jsonl"
    size = position = 0
    file: FileRecord | None = None

    def __init__(self, dataset: Any, label: str, start: int, count: int, json_key: str) -> None:
        self.name = f"{label}[{start}:{start + count}]"
        self._dataset, self._start, self._count = dataset, start, count
        self._json_key = json_key
        self._digest, self._bytes = hashlib.sha256(), 0

    def records(self) -> Iterator[Record]:
        """Every row; one whose field is missing or no string becomes a bad line later."""
        rows = islice(self._dataset.skip(self._start), self._count)
        for number, row in enumerate(rows, self._start + 1):
            text = row.get(self._json_key)
            known = text if isinstance(text, str) else None
            raw = json.dumps({self._json_key: known}).encode()
            self._digest.update(raw)
            self._bytes += len(raw)
            yield Record(number, raw)

    def content(self) -> FileRecord:
        """Size and hash of what was read."""
        return FileRecord(size=self._bytes, sha256=self._digest.hexdigest())


def open_dataset(path: str, name: str | None, revision: str | None, split: str) -> tuple[Any, str]:
    """Open a data set for streaming.

    Returns:
        The data set, and a label with its name, configuration, exact revision and split.

    Raises:
        UnavailableError: the package `datasets` is missing, or the data set cannot be had.
    """
    try:
        import datasets
    except ImportError as error:
        raise UnavailableError(
            "hf_dataset needs the package datasets. Fix: pip install datasets (the extra 'hub')"
        ) from error
    try:
        revision = revision if os.path.isdir(path) else _commit(path, revision)
        dataset = datasets.load_dataset(path, name, revision=revision, split=split, streaming=True)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnavailableError(
            f"hf_dataset: {path}: cannot be loaded: {reason}. "
            "Fix: check its name, configuration and split, the network and HF_TOKEN"
        ) from error
    return dataset, f"{path}/{name or 'default'}@{revision or 'local'}:{split}"


def _commit(path: str, revision: str | None) -> str | None:
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(path, revision=revision).sha
    except Exception as error:
        # Errors of the HTTP client that the library happens to use come through as they are.
        raise OSError(str(error)) from error
