"""Making the tokenizer of an experiment: trained from its text, or copied from elsewhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from primus.artifacts.manifest import FileRecord
from primus.artifacts.tokens import TokenizerManifest
from primus.dataset.publish import kept_manifest, only_writer, publish, refuse_changed_inputs
from primus.dataset.sources import FilePart, file_parts
from primus.dataset.text import expand
from primus.dataset.tokenizer import describe, verify_tokenizer
from primus.errors import DataError


@dataclass(frozen=True, kw_only=True)
class TokenizerRequest:
    """Which tokenizer; `model` None: one is trained from `data_path`."""

    model: str | None = None
    data_path: Sequence[str] = ()
    vocab_size: int | None = None
    json_key: str = "text"
    max_bad_lines: int = 100


def make_tokenizer(request: TokenizerRequest, output: Path) -> TokenizerManifest:
    """Make the tokenizer beside `output`, or verify the one that is there, and publish it.

    Raises:
        DataError: the text cannot be read; it is not the text that the published tokenizer was
            trained on; or a file of that tokenizer is damaged.
        UnavailableError: the tokenizer to be copied cannot be had.
        RunConflictError: another process is at it.
    """
    parts = _training_text(request)
    with only_writer(output):
        manifest = kept_manifest(TokenizerManifest, output)
        if manifest is None:
            manifest = _make(request, parts, output.parent)
        else:
            found = {part.name: part.content() for part in parts}
            refuse_changed_inputs(manifest.trained_on, found, output)
            verify_tokenizer(manifest, output.parent)
        publish(manifest, output)
    return manifest


def _training_text(request: TokenizerRequest) -> list[FilePart]:
    if request.model is not None:
        return []
    if not request.data_path:
        raise DataError(
            "tokenizer_data_path is empty, and tokenizer_model is null. Fix: set one of them"
        )
    return file_parts(expand(request.data_path, key="tokenizer_data_path"))


def _make(request: TokenizerRequest, parts: list[FilePart], directory: Path) -> TokenizerManifest:
    draft = directory / ".draft"
    shutil.rmtree(draft, ignore_errors=True)
    if request.model is not None:
        from primus.dataset.hub import save_tokenizer

        eod_id, source = save_tokenizer(request.model, draft), request.model
    else:
        eod_id, source = _train(request, parts, draft), "trained"
    trained_on: dict[str, FileRecord] = {part.name: part.content() for part in parts}
    manifest = describe(draft, eod_id=eod_id, source=source, trained_on=trained_on)
    for name in manifest.files:
        os.replace(draft / name, directory / name)
    draft.rmdir()
    return manifest


def _train(request: TokenizerRequest, parts: list[FilePart], directory: Path) -> int:
    from primus.dataset.bpe import train_bpe

    if request.vocab_size is None:
        raise DataError("tokenizer_vocab_size is null. Fix: set it, or tokenizer_model")
    return train_bpe(
        parts,
        directory,
        vocab_size=request.vocab_size,
        json_key=request.json_key,
        max_bad_lines=request.max_bad_lines,
    )
