"""A Megatron checkpoint, read tensor by tensor, as safetensors files of bounded size."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from primus.errors import ArtifactError
from primus.files import atomic_write
from primus.huggingface import llama
from primus.huggingface.llama import Target

MAX_SHARD_BYTES = 5 * 10**9


class CheckpointReader:
    """Full tensors of a distributed checkpoint, whatever layout wrote it; one in memory at a time.

    The checkpoint's index is a pickle: verify the checkpoint's manifest before opening it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._metadata = FileSystemReader(str(directory)).read_metadata().state_dict_metadata
        self._read = lru_cache(maxsize=1)(self._load)

    def dtype(self, key: str) -> torch.dtype:
        """Type of a stored tensor.

        Raises:
            ArtifactError: the checkpoint has no such tensor.
        """
        return self._described(key).properties.dtype

    def tensor(self, key: str, layer: int | None) -> Tensor:
        """A stored tensor, or one layer of a stored stack."""
        whole = self._read(key)
        return whole if layer is None else whole[layer]

    def _described(self, key: str) -> TensorStorageMetadata:
        found = self._metadata.get(key)
        if not isinstance(found, TensorStorageMetadata):
            raise ArtifactError(f"{self._directory}: has no tensor {key}")
        return found

    def _load(self, key: str) -> Tensor:
        described = self._described(key)
        state: dict[str, Any] = {key: torch.empty(described.size, dtype=described.properties.dtype)}
        dcp_load(state, storage_reader=FileSystemReader(str(self._directory)), no_dist=True)
        tensor: Tensor = state[key]
        return tensor


def _plan(targets: Sequence[Target], element_size: int) -> Iterator[list[Target]]:
    shard: list[Target] = []
    size = 0
    for target in targets:
        bytes_ = math.prod(target.shape) * element_size
        if shard and size + bytes_ > MAX_SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(target)
        size += bytes_
    if shard:
        yield shard


def write_weights(
    reader: CheckpointReader,
    targets: Sequence[Target],
    directory: Path,
    progress: Callable[[str], None],
) -> list[Path]:
    """Write model*.safetensors and, for several of them, the index; returns the files.

    Raises:
        ArtifactError: a tensor is missing or has another shape than the architecture says.
    """
    element_size = reader.dtype(targets[0].source).itemsize
    shards = list(_plan(targets, element_size))
    files, weight_map, total = [], {}, 0
    for number, shard in enumerate(shards, start=1):
        name = "model.safetensors"
        if len(shards) > 1:
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {target.name: _convert(reader, target) for target in shard}
        save_file(tensors, str(directory / name), metadata={"format": "pt"})
        total += sum(tensor.nbytes for tensor in tensors.values())
        weight_map.update(dict.fromkeys(tensors, name))
        files.append(directory / name)
        progress(f"{name}: {len(tensors)} tensors")
    if len(shards) > 1:
        index = directory / "model.safetensors.index.json"
        with atomic_write(index) as stream:
            content = {"metadata": {"total_size": total}, "weight_map": weight_map}
            json.dump(content, stream, indent=2, sort_keys=True)
        files.append(index)
    return files


def _convert(reader: CheckpointReader, target: Target) -> Tensor:
    tensor = target.convert(reader.tensor(target.source, target.layer)).contiguous()
    if tuple(tensor.shape) != target.shape:
        raise ArtifactError(
            f"{target.name}: has shape {tuple(tensor.shape)} in the checkpoint, "
            f"the architecture says {target.shape}"
        )
    return tensor.clone()


def write_model(
    checkpoint: Path, settings: Mapping[str, Any], directory: Path, *, eod_id: int
) -> str:
    """Write config.json and the weights of a verified checkpoint; returns the weights' dtype.

    Raises:
        UserError: transformers has no class for the architecture.
        ArtifactError: the checkpoint does not hold the architecture that `settings` describe.
    """
    reader = CheckpointReader(checkpoint)
    targets = list(llama.targets(settings))
    dtype = str(reader.dtype(targets[0].source)).removeprefix("torch.")
    content = llama.config(settings, eod_id=eod_id, dtype=dtype)
    with atomic_write(directory / "config.json") as stream:
        json.dump(content, stream, indent=2, sort_keys=True)
    for path in write_weights(reader, targets, directory, lambda line: print(line, flush=True)):
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())
    return dtype
