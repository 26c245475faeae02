"""Training samples: index caches of megatron-core's GPTDataset, for one pass over each split.

Megatron builds its caches for as many samples as a run needs, so a longer run has another order.
Here a cache is for exactly one pass, and the trainer walks the passes (`primus.dataset.order`).
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from primus.artifacts.manifest import FileRecord
from primus.artifacts.tokens import DataManifest, SamplesManifest
from primus.dataset.build import load_data
from primus.dataset.publish import kept_manifest, only_writer, publish, verify_files
from primus.errors import ArtifactError, DataError
from primus.files import canonical_json, sha256_text

if TYPE_CHECKING:
    import numpy as np
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

SplitName = Literal["train", "valid", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")

_CACHE = "cache"


@dataclass(frozen=True, kw_only=True)
class SamplesRequest:
    """How tokens become samples."""

    seq_length: int
    split: str
    seed: int


def build_samples(request: SamplesRequest, data_path: Path, output: Path) -> SamplesManifest:
    """Build the caches beside `output`, or verify the ones that are there, and publish them.

    Args:
        data_path: manifest of the token files, which are verified.

    Raises:
        DataError: a split with a share is too small for a sample, or token files or caches are
            damaged.
        RunConflictError: another process is at it.
    """
    data = load_data(data_path)
    with only_writer(output):
        manifest = kept_manifest(SamplesManifest, output)
        if manifest is None:
            manifest = _build(request, data, data_path, output)
        else:
            _check_data(manifest, data, data_path, output)
            verify_files(manifest.files, output.parent)
        publish(manifest, output)
    return manifest


def _build(
    request: SamplesRequest, data: DataManifest, data_path: Path, output: Path
) -> SamplesManifest:
    cache = output.parent / _CACHE
    prefix = data_path.parent / data.path_prefix
    parts = _Splits(_config(request, data, prefix, cache), data, prefix)
    samples = {split: parts.check(split) for split in SPLITS}
    for split in SPLITS:
        if samples[split] and len(parts.open(split)) != samples[split]:
            raise ArtifactError(f"{cache}: megatron built another number of samples for {split}")
    files = {f"{_CACHE}/{path.name}": FileRecord.of(path) for path in sorted(cache.iterdir())}
    return SamplesManifest(
        data_manifest=os.path.relpath(data_path, output.parent),
        data_fingerprint=data.fingerprint,
        path_to_cache=_CACHE,
        seq_length=request.seq_length,
        split=request.split,
        seed=request.seed,
        samples={str(split): number for split, number in samples.items()},
        files=files,
        fingerprint=_fingerprint(request, data, files),
    )


def _fingerprint(request: SamplesRequest, data: DataManifest, files: dict[str, FileRecord]) -> str:
    hashes = {name: record.sha256 for name, record in files.items()}
    return sha256_text(canonical_json([vars(request), data.fingerprint, hashes]))


def _check_data(
    manifest: SamplesManifest, data: DataManifest, data_path: Path, output: Path
) -> None:
    if manifest.data_fingerprint != data.fingerprint:
        raise DataError(
            f"{output}: made from the token files {manifest.data_fingerprint}, but {data_path} "
            f"holds {data.fingerprint}. Fix: restore those token files, or set another data_version"
        )


def open_split(
    samples_manifest: Path | str, split: SplitName, *, eod_mask_loss: bool = False
) -> GPTDataset:
    """Open one split in a rank of the trainer. Reads caches only: ranks cannot race.

    Item `i` is a dictionary of tensors of length seq_length: tokens, labels and position_ids
    (int64), loss_mask (float32). Sizes of the files are checked; `verify_samples` checks content.

    Raises:
        ArtifactError: a manifest, a token file or a cache is missing or of another size.
        DataError: the split has no samples, or the token files are not those of the samples.
    """
    path = Path(samples_manifest)
    manifest, splits = _open(path, eod_mask_loss=eod_mask_loss)
    _check_sizes(manifest.files, path.parent)
    if not manifest.samples[split]:
        raise DataError(
            f"split = {manifest.split}: {split} has no samples. Fix: give it a share above 0"
        )
    dataset = splits.open(split)
    for cached in (
        dataset.path_to_document_index,
        dataset.path_to_sample_index,
        dataset.path_to_shuffle_index,
    ):
        if f"{manifest.path_to_cache}/{Path(cached).name}" not in manifest.files:
            raise ArtifactError(
                f"{path}: has no cache {Path(cached).name}; it was built by another version of "
                "megatron-core. Fix: move its directory away and run the samples stage again"
            )
    return dataset


def documents_of(samples_manifest: Path | str, split: SplitName) -> Iterator[np.ndarray[Any, Any]]:
    """The ids of each document of a split, in the order of the token files.

    Sizes of the files are checked, as of `open_split`.

    Raises:
        ArtifactError: a manifest or a token file is missing or of another size.
        DataError: the split has no documents, or the token files are not those of the samples.
    """
    yield from _open(Path(samples_manifest))[1].documents(split)


def _open(path: Path, *, eod_mask_loss: bool = False) -> tuple[SamplesManifest, _Splits]:
    """What `path` says, and the splits of token files that are there; caches are only read."""
    manifest = SamplesManifest.load(path)
    data_path = path.parent / manifest.data_manifest
    data = DataManifest.load(data_path)
    _check_data(manifest, data, data_path, path)
    _check_sizes(data.files, data_path.parent)
    request = SamplesRequest(
        seq_length=manifest.seq_length, split=manifest.split, seed=manifest.seed
    )
    prefix, cache = data_path.parent / data.path_prefix, path.parent / manifest.path_to_cache
    config = _config(request, data, prefix, cache, eod_mask_loss=eod_mask_loss, read_only=True)
    return manifest, _Splits(config, data, prefix)


def verify_samples(samples_manifest: Path | str) -> SamplesManifest:
    """Verify caches and token files byte by byte; for one process, before a run starts.

    Raises:
        ArtifactError, DataError: something is missing, changed or does not fit together.
    """
    path = Path(samples_manifest)
    manifest = SamplesManifest.load(path)
    data_path = path.parent / manifest.data_manifest
    _check_data(manifest, load_data(data_path), data_path, path)
    verify_files(manifest.files, path.parent)
    return manifest


def _check_sizes(files: dict[str, FileRecord], directory: Path) -> None:
    for name, record in sorted(files.items()):
        path = directory / name
        if not path.is_file():
            raise ArtifactError(f"{path}: missing. Fix: run its stage again")
        if path.stat().st_size != record.size:
            raise ArtifactError(
                f"{path}: has {path.stat().st_size} bytes, its manifest says {record.size}"
            )


class _Tokenizer:
    """What GPTDataset asks of a tokenizer; it names the cache through `unique_identifiers`."""

    def __init__(self, data: DataManifest) -> None:
        self.vocab_size, self.eod = data.vocab_size, data.eod_id
        self.unique_identifiers = OrderedDict(fingerprint=data.tokenizer_fingerprint)


def _config(
    request: SamplesRequest,
    data: DataManifest,
    prefix: Path,
    cache: Path,
    *,
    eod_mask_loss: bool = False,
    read_only: bool = False,
) -> GPTDatasetConfig:
    from primus.dataset.core import GPTDatasetConfig

    return GPTDatasetConfig(
        random_seed=request.seed,
        sequence_length=request.seq_length,
        blend=([str(prefix)], None),
        split=request.split,
        path_to_cache=str(cache),
        mmap_bin_files=True,
        tokenizer=_Tokenizer(data),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=eod_mask_loss,
        create_attention_mask=False,
        # With this, core maps the caches at the first access and has no way to build them.
        defer_npy_index_mmap=read_only,
    )


class _Splits:
    """The splits of one pair of token files, by documents, as megatron's builder cuts them."""

    def __init__(self, config: GPTDatasetConfig, data: DataManifest, prefix: Path) -> None:
        from primus.dataset.core import IndexedDataset

        self._config, self._data, self._prefix = config, data, prefix
        self._tokens = IndexedDataset(str(prefix), mmap=config.mmap_bin_files)

    def _documents(self, split: SplitName) -> np.ndarray[Any, Any]:
        import numpy as np

        bounds = self._config.split_matrix[SPLITS.index(split)]
        count = float(len(self._tokens))
        begin, end = (round(bound * count) for bound in bounds or (0.0, 0.0))
        return np.arange(begin, end, dtype=np.int32)

    def check(self, split: SplitName) -> int:
        """Samples of one pass over the split.

        Raises:
            DataError: there are none though the split has a share.
        """
        documents = self._documents(split)
        tokens = int(self._tokens.sequence_lengths[documents].sum(dtype="int64"))
        samples: int = max(tokens - 1, 0) // self._config.sequence_length
        if samples == 0 and self._config.split_matrix[SPLITS.index(split)] is not None:
            raise DataError(
                f"split = {self._config.split}: {split} gets {len(documents)} of "
                f"{len(self._tokens)} documents with {tokens} tokens, and one sample needs "
                f"{self._config.sequence_length + 1}. Fix: give {split} a larger share or 0, "
                "add text, or lower seq_length"
            )
        return samples

    def documents(self, split: SplitName) -> Iterator[np.ndarray[Any, Any]]:
        """The ids of each document.

        Raises:
            DataError: there is none.
        """
        numbers = self._documents(split)
        if not len(numbers):
            raise DataError(
                f"split = {self._config.split}: {split} has no documents. "
                "Fix: give it a share above 0"
            )
        for number in numbers:
            yield self._tokens[int(number)]

    def open(self, split: SplitName) -> GPTDataset:
        """The dataset of the split."""
        from primus.dataset.core import GPTDataset, Split

        return GPTDataset(
            self._tokens,
            # Stands for a path in the cache's name, which must not depend on where the files lie.
            self._data.fingerprint,
            self._documents(split),
            None,
            Split[split],
            self._config,
        )
