"""What of a checkpoint is a pickle, read with nothing but the classes that its writer puts there.

A manifest's hash finds damage; who forges a checkpoint forges the hash with it. torch reads the
index of a distributed checkpoint, and the objects in it, with pickle itself, so each is held
against this first. transformer-engine's own state is a pickle inside a tensor, which nothing here
looks into: it may be there, or not.
"""

from __future__ import annotations

import io
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path, PosixPath
from typing import Any, NoReturn

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.serialization import _get_layout

from primus.errors import ArtifactError

# The files of a rank's writer.
_SHARD = re.compile(r"__\d+_\d+\.distcp")
INDEX, COMMON, FORMAT = ".metadata", "common.pt", "metadata.json"
_ALLOWED: dict[tuple[str, str], Any] = {
    (found.__module__, found.__qualname__): found
    for found in (
        *(Metadata, MetadataIndex, StorageMeta, ChunkStorageMetadata, BytesStorageMetadata),
        *(TensorStorageMetadata, TensorProperties, _MEM_FORMAT_ENCODING, _StorageInfo),
        *(torch.Size, _get_layout, PosixPath),
    )
}
# Megatron-core's name for torch's format; another would be read by other code.
_FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


class _Unpickler(pickle.Unpickler):
    """Makes objects of the index's own classes, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """The class or function of that name, where an index may ask for it."""
        found = _ALLOWED.get((module, name))
        if found is None and module == "torch":
            found = vars(torch).get(name)
            found = found if isinstance(found, torch.dtype) else None
        if found is None:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which no checkpoint needs")
        return found


def read_index(directory: Path) -> Metadata:
    """The index of torch's distributed checkpoint in `directory`.

    Raises:
        ArtifactError: it is damaged, would run code, or names a file elsewhere.
    """
    path = directory / INDEX
    try:
        index = _Unpickler(io.BytesIO(path.read_bytes())).load()
        _check_index(index)
    except Exception as error:
        # A crafted pickle can raise anything.
        _refuse(path, error)
    return index  # type: ignore[no-any-return]


def _check_index(index: Any) -> None:
    if type(index) is not Metadata:
        raise TypeError("is no index of a checkpoint")
    known = {TensorStorageMetadata, BytesStorageMetadata}
    if not {type(stored) for stored in index.state_dict_metadata.values()} <= known:
        raise TypeError("lists what is neither tensor nor object")
    for at, place in index.storage_data.items():
        if type(at) is not MetadataIndex or type(place) is not _StorageInfo:
            raise TypeError("has an entry that is no place in a file")
        name, fine = place.relative_path, min(place.offset, place.length) >= 0
        if type(name) is not str or not _SHARD.fullmatch(name) or not fine:
            raise ValueError(f"places {at.fqn} in {str(name)[:80]!r}, no file of a checkpoint")
        if place.transform_descriptors:
            raise ValueError(f"{at.fqn} is stored in a form that this project does not write")


def tensors(index: Metadata) -> set[str]:
    """The names of all tensors of a checkpoint."""
    stored = index.state_dict_metadata.items()
    return {name for name, what in stored if isinstance(what, TensorStorageMetadata)}


def check(directory: Path, part: int = 0, parts: int = 1, *, engine_state: bool = True) -> Metadata:
    """Check that loading the checkpoint runs no code, whatever its files hold.

    Args:
        part: which share of its objects to look at, of `parts`.
        engine_state: transformer-engine may have left one; it has none where it computes in no fp8.

    Returns:
        its index.

    Raises:
        ArtifactError: the first file that is damaged, or would run code.
    """
    index = read_index(directory)
    for number, (name, path, content) in enumerate(_objects(directory, index)):
        if number % parts == part:
            found = _load_plain(path, content)
            if "_extra_state" in name and not engine_state and not _is_empty(found):
                raise ArtifactError(
                    f"{path}: would not load safely: {name} may hold a pickle of "
                    "transformer-engine's, which has none without fp8"
                )
    if part == 0:
        common, form = directory / COMMON, directory / FORMAT
        if not isinstance(_load_plain(common, _bytes(common)), dict):
            raise ArtifactError(f"{common}: holds no dictionary")
        try:
            fits = json.loads(_bytes(form)) == _FORMAT
        except (ValueError, RecursionError) as error:
            _refuse(form, error)
        if not fits:
            raise ArtifactError(f"{form}: names a format that this project does not write")
    return index


def _objects(directory: Path, index: Metadata) -> Iterator[tuple[str, Path, bytes]]:
    """Everything that is stored, but for tensors: torch holds those to plain numbers itself."""
    for at, place in index.storage_data.items():
        if not isinstance(index.state_dict_metadata.get(at.fqn), TensorStorageMetadata):
            path = directory / place.relative_path
            yield at.fqn, path, _bytes(path, place.offset, place.length)


def _is_empty(found: Any) -> bool:
    if isinstance(found, list | tuple):
        return all(_is_empty(item) for item in found)
    return found is None or (isinstance(found, torch.Tensor) and found.numel() == 0)


def _bytes(path: Path, offset: int = 0, length: int = -1) -> bytes:
    try:
        with open(path, "rb") as stream:
            stream.seek(offset)
            return stream.read(length)
    except (OSError, OverflowError) as error:
        raise ArtifactError(f"{path}: cannot be read: {error}") from error


def _load_plain(path: Path, content: bytes) -> Any:
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        _refuse(path, error)


def _refuse(path: Path, error: Exception) -> NoReturn:
    # torch's own message goes on to tell how to load the file all the same.
    asked = re.search(r"GLOBAL (\S+)", str(error))
    said = f"asks for {asked[1]}, which no checkpoint needs" if asked else str(error)
    first = (said.strip().splitlines() or [type(error).__name__])[0][:200]
    raise ArtifactError(f"{path}: would not load safely: {ascii(first)[1:-1]}") from error
