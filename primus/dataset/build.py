"""Text to Megatron's token files: shards, merge, manifest."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from primus.artifacts.manifest import FileRecord
from primus.artifacts.tokens import DataManifest, InputFile
from primus.dataset.bad_lines import BadLines
from primus.dataset.progress import Progress
from primus.dataset.publish import (
    kept_manifest,
    only_writer,
    publish,
    refuse_changed_inputs,
    verify_files,
)
from primus.dataset.shards import Shard, Shards
from primus.dataset.sources import FilePart, HubDataset, Part, file_parts, hub_parts
from primus.dataset.text import expand
from primus.dataset.tokenize import Recipe, TokenizerPool, tokenizer_pool
from primus.dataset.tokenizer import LoadedTokenizer
from primus.errors import ArtifactError, DataError
from primus.files import canonical_json, sha256_text

_PREFIX = "tokens"


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """What is to be tokenised; either `data_path` or `hub`."""

    dataset: str
    data_path: Sequence[str] = ()
    hub: HubDataset | None = None
    json_key: str = "text"
    append_eod: bool = True
    max_bad_lines: int = 100
    workers: int = 2


def build_data(request: DataRequest, tokenizer: LoadedTokenizer, output: Path) -> DataManifest:
    """Make the token files beside `output`, or verify the ones that are there, and publish them.

    A stopped build is taken up again at the first input file that was not finished.

    Raises:
        DataError: the text cannot be read; it is not the text that the published token files were
            made from; or those files are damaged.
        RunConflictError: another process is at it.
    """
    if bool(request.data_path) == (request.hub is not None):
        raise DataError("data_path, hf_dataset: one of them is needed. Fix: set one, not both")
    with only_writer(output):
        files = file_parts(expand(request.data_path))
        manifest = kept_manifest(DataManifest, output)
        if manifest is None:
            manifest = _build(request, files, tokenizer, output)
        else:
            _verify(manifest, files, tokenizer, output)
        publish(manifest, output)
        shutil.rmtree(output.parent / "shards", ignore_errors=True)
    return manifest


def _verify(
    manifest: DataManifest, files: list[FilePart], tokenizer: LoadedTokenizer, output: Path
) -> None:
    check_tokenizer(manifest, tokenizer, output)
    if files:  # rows of the hub are not read again: their names carry the revision
        refuse_changed_inputs(
            {name: entry.file for name, entry in manifest.inputs.items()},
            {part.name: part.content() for part in files},
            output,
        )
    verify_files(manifest.files, output.parent)


def check_tokenizer(manifest: DataManifest, tokenizer: LoadedTokenizer, path: Path) -> None:
    """Hold the tokenizer against the one that the token files were made with.

    Raises:
        DataError: their fingerprints differ; both are named.
    """
    if manifest.tokenizer_fingerprint != tokenizer.manifest.fingerprint:
        raise DataError(
            f"{path}: made with the tokenizer {manifest.tokenizer_fingerprint}, but "
            f"{tokenizer.directory} holds {tokenizer.manifest.fingerprint}. "
            "Fix: use the tokenizer of these token files, or another data_version"
        )


def _build(
    request: DataRequest, files: list[FilePart], tokenizer: LoadedTokenizer, output: Path
) -> DataManifest:
    with ExitStack() as stack:
        total = sum(part.size for part in files)
        progress = stack.enter_context(Progress(f"data {request.dataset}", total))
        recipe = Recipe(
            tokenizer_json=tokenizer.json_path,
            json_key=request.json_key,
            eod_id=tokenizer.manifest.eod_id if request.append_eod else None,
        )

        @cache
        def pool() -> TokenizerPool:
            return stack.enter_context(tokenizer_pool(recipe, request.workers))

        shards = Shards(
            output.parent / "shards",
            recipe=_recipe_id(request, tokenizer),
            vocab_size=tokenizer.manifest.vocab_size,
            bad=BadLines(request.max_bad_lines),
            progress=progress,
            pool=pool,
        )
        for part in _parts(request, files, shards):
            shards.add(part)
        manifest = _describe(request, shards, tokenizer, output.parent)
        progress.summary(
            f"{manifest.documents:,} documents, {manifest.tokens:,} tokens, "
            f"{manifest.skipped_lines} lines skipped"
        )
    return manifest


def _recipe_id(request: DataRequest, tokenizer: LoadedTokenizer) -> str:
    return canonical_json([tokenizer.manifest.fingerprint, request.json_key, request.append_eod])


def _parts(request: DataRequest, files: list[FilePart], shards: Shards) -> Iterator[Part]:
    if request.hub is None:
        yield from files
        return
    yield from hub_parts(request.hub, request.json_key, lambda: shards.finished[-1].rows)


def _describe(
    request: DataRequest, shards: Shards, tokenizer: LoadedTokenizer, directory: Path
) -> DataManifest:
    from primus.dataset.merge import merge, unigram_entropy

    finished = shards.finished
    if not any(shard.tokens for shard in finished):
        names = ", ".join(shard.source for shard in finished[:3])
        raise DataError(f"{names}: no text. Fix: name files that hold some")
    files = merge(shards, directory / _PREFIX)
    vocab_size = tokenizer.manifest.vocab_size
    return DataManifest(
        dataset=request.dataset,
        path_prefix=_PREFIX,
        dtype=shards.dtype.__name__,
        documents=sum(shard.documents for shard in finished),
        tokens=sum(shard.tokens for shard in finished),
        characters=sum(shard.characters for shard in finished),
        skipped_lines=sum(len(shard.bad_lines) for shard in finished),
        empty_documents=sum(shard.empty for shard in finished),
        unigram_entropy=unigram_entropy(directory / f"{_PREFIX}.bin", shards.dtype, vocab_size),
        tokenizer_fingerprint=tokenizer.manifest.fingerprint,
        vocab_size=vocab_size,
        eod_id=tokenizer.manifest.eod_id,
        files=files,
        inputs={shard.source: _input(shard) for shard in finished},
        fingerprint=data_fingerprint(files, tokenizer.manifest.fingerprint),
    )


def _input(shard: Shard) -> InputFile:
    return InputFile(
        file=shard.file,
        documents=shard.documents,
        tokens=shard.tokens,
        skipped_lines=len(shard.bad_lines),
    )


def data_fingerprint(files: dict[str, FileRecord], tokenizer_fingerprint: str) -> str:
    """SHA-256 over the hashes of the token files and the tokenizer's fingerprint."""
    hashes = {name: record.sha256 for name, record in files.items()}
    return sha256_text(canonical_json([hashes, tokenizer_fingerprint]))


def load_data(manifest_path: Path) -> DataManifest:
    """Read a data manifest and verify its token files byte by byte.

    Raises:
        ArtifactError: the manifest cannot be read, or its fingerprint is not that of its files.
        DataError: a token file is missing, cut short or changed.
    """
    manifest = DataManifest.load(manifest_path)
    if manifest.fingerprint != data_fingerprint(manifest.files, manifest.tokenizer_fingerprint):
        raise ArtifactError(f"{manifest_path}: its fingerprint is not that of its files")
    verify_files(manifest.files, manifest_path.parent)
    return manifest
