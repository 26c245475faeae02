"""What the tokenizer, data and samples stages promise to those after them."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from primus.artifacts.manifest import FileRecord, Files, Manifest


class TokenizerManifest(Manifest):
    """A Hugging Face tokenizer directory, which is the directory of the manifest.

    Attributes:
        fingerprint: SHA-256 of the canonical tokenizer.json; equal text gives equal ids.
        vocab_size: ids are below this.
        eod_id: end-of-document id.
        files: every file of the tokenizer by its path relative to the manifest.
        source: hub id, directory, or "trained".
        trained_on: input files by path as configured, when trained here.
    """

    kind: ClassVar[str] = "tokenizer"

    fingerprint: str
    vocab_size: int
    eod_id: int
    files: Files
    source: str
    trained_on: dict[str, FileRecord] = {}


class InputFile(BaseModel):
    """One text file that went into the token files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: FileRecord
    documents: int
    tokens: int
    skipped_lines: int


class DataManifest(Manifest):
    """Megatron token files (`<path_prefix>.bin` and `.idx`).

    Attributes:
        path_prefix: relative to the manifest, without suffix.
        dtype: numpy name of the token type.
        skipped_lines: lines that could not be read.
        empty_documents: documents without text, left out.
        unigram_entropy: entropy of the token frequencies, in nats per token; a model that has
            learnt nothing but frequencies has this loss.
        files: .bin and .idx by path relative to the manifest.
        inputs: source files by path as configured.
        fingerprint: SHA-256 over the hashes of `files` and the tokenizer's fingerprint.
    """

    kind: ClassVar[str] = "data"

    dataset: str
    path_prefix: str
    dtype: str
    documents: int
    tokens: int
    characters: int
    skipped_lines: int
    empty_documents: int = 0
    unigram_entropy: float
    tokenizer_fingerprint: str
    vocab_size: int
    eod_id: int
    files: Files
    inputs: dict[str, InputFile]
    fingerprint: str


class SamplesManifest(Manifest):
    """Index caches of megatron-core's GPTDataset for one pass over each split.

    Attributes:
        data_manifest: path of the data manifest, relative to this one.
        path_to_cache: directory of the caches, relative to this manifest.
        samples: per split ("train", "valid", "test") the samples of one pass.
        fingerprint: SHA-256 over the data fingerprint, the settings here and the cache files.
    """

    kind: ClassVar[str] = "samples"

    data_manifest: str
    data_fingerprint: str
    path_to_cache: str
    seq_length: int
    split: str
    seed: int
    samples: dict[str, int]
    files: Files
    fingerprint: str
