"""Tensors of a distributed checkpoint, whatever layout wrote it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from primus.errors import ArtifactError
from primus.pickles import read_index

_LAYER = re.compile(r"^(decoder\.layers\.)(\d+)\.")
_EXPERT = re.compile(r"(\.experts\.experts\.)(\d+)\.")


class _Planner(DefaultLoadPlanner):
    """Reads one index of a stored stack of tensors: torch opens only what it needs for that."""

    def __init__(self, key: str, stored: TensorStorageMetadata, index: tuple[int, ...]) -> None:
        super().__init__()
        self._key, self._stored = key, stored
        self._chunk = ChunkStorageMetadata(
            offsets=torch.Size([*index, *[0] * (len(stored.size) - len(index))]),
            sizes=torch.Size([*[1] * len(index), *stored.size[len(index) :]]),
        )
        self.tensor = torch.empty(self._chunk.sizes, dtype=stored.properties.dtype)

    def create_local_plan(self) -> LoadPlan:
        """What to read."""
        return LoadPlan(create_read_items_for_chunk_list(self._key, self._stored, [self._chunk]))

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """Where it goes."""
        return self.tensor


class _Reader(FileSystemReader):
    """Reads the index once: that of a large model has tens of thousands of entries."""

    @cached_property
    def index(self) -> Metadata:
        """What the checkpoint holds."""
        index = read_index(Path(self.path))
        index.storage_meta = StorageMeta(load_id=self.load_id)
        return index

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """The index, as torch asks for it."""
        return self.index


class CheckpointReader:
    """Whole tensors by the names of `Rule.megatron`, read one at a time.

    Megatron-core stacks the tensors of equal layers, and those of experts, in first dimensions.

    Verify the checkpoint's manifest before opening it: nothing here finds damage.

    Raises:
        ArtifactError: the checkpoint's index is damaged, or would run code.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._reader = _Reader(str(directory))
        self._metadata = self._reader.index.state_dict_metadata

    def dtype(self, name: str) -> torch.dtype:
        """Type of a tensor.

        Raises:
            ArtifactError: the checkpoint has no such tensor.
        """
        _, _, stored = self._find(name)
        return stored.properties.dtype

    def tensor(self, name: str) -> Tensor:
        """A tensor, with the padding of its rows.

        Raises:
            ArtifactError: the checkpoint has no such tensor.
        """
        key, index, stored = self._find(name)
        planner = _Planner(key, stored, index)
        state: dict[str, Any] = {key: planner.tensor}
        with warnings.catch_warnings():
            # That no ranks take part is meant.
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            dcp_load(state, storage_reader=self._reader, planner=planner, no_dist=True)
        return planner.tensor[(0,) * len(index)]

    def _find(self, name: str) -> tuple[str, tuple[int, ...], TensorStorageMetadata]:
        for key, index in _keys(name):
            stored = self._metadata.get(key)
            if isinstance(stored, TensorStorageMetadata):
                inside = all(i < size for i, size in zip(index, stored.size, strict=False))
                if inside:
                    return key, index, stored
        raise ArtifactError(f"{self._directory}: has no tensor {name}")


def _keys(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Where a tensor may be: in the stack of its layers, of its experts, of both, or by itself."""
    layer, expert = _LAYER.search(name), _EXPERT.search(name)
    for by_expert in (True, False) if expert else (False,):
        for by_layer in (True, False) if layer else (False,):
            key, index = name, []
            if by_layer and layer:
                key, index = _LAYER.sub(r"\1", key), [int(layer[2])]
            if by_expert and expert:
                key, index = _EXPERT.sub(r"\1", key), [*index, int(expert[2])]
            yield key, tuple(index)
