"""A Megatron checkpoint, read tensor by tensor, as a Hugging Face directory."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import Tensor

from primus.config.families import family_of
from primus.config.families.config_json import content
from primus.config.families.mapping import Rule
from primus.errors import ArtifactError
from primus.files import atomic_write
from primus.huggingface.checkpoint import CheckpointReader
from primus.huggingface.directory import CONFIG, INDEX, WEIGHTS
from primus.huggingface.read import pieces

MAX_SHARD_BYTES = 5 * 10**9


class Written(NamedTuple):
    """What a directory holds: its class in transformers, its numbers, their type."""

    architecture: str
    parameters: int
    dtype: str


def write_model(checkpoint: Path, settings: Any, directory: Path, *, eod_id: int) -> Written:
    """Write config.json and the weights of a verified checkpoint.

    Args:
        settings: the run's, by attribute.

    Raises:
        UserError: no published architecture is that of the settings.
        ArtifactError: the checkpoint does not hold the architecture that `settings` describe.
    """
    family = family_of(settings)
    rules = list(family.rules(settings))
    reader = CheckpointReader(checkpoint)
    dtype = str(reader.dtype(rules[0].megatron)).removeprefix("torch.")
    about = {
        "architectures": [family.architecture],
        "attention_dropout": settings.attention_dropout,
        "bos_token_id": eod_id,
        "eos_token_id": eod_id,
        "initializer_range": settings.init_method_std,
        "model_type": family.model_type,
        # The name that every release of transformers reads.
        "torch_dtype": dtype,
        "use_cache": True,
    }
    with atomic_write(directory / CONFIG) as stream:
        json.dump(content(family.fields(settings)) | about, stream, indent=2, sort_keys=True)
    files, numbers = write_weights(reader, rules, directory, lambda line: print(line, flush=True))
    for path in files:
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())
    return Written(family.architecture, numbers, dtype)


def write_weights(
    reader: CheckpointReader,
    rules: Sequence[Rule],
    directory: Path,
    progress: Callable[[str], None],
) -> tuple[list[Path], int]:
    """Write model*.safetensors and, for several of them, the index.

    Returns:
        the files, and how many numbers the tensors hold.

    Raises:
        ArtifactError: a tensor is missing or has another shape than the architecture says.
    """
    shards = list(_plan(reader, rules))
    files, weight_map, total, numbers = [], {}, 0, 0
    for number, shard in enumerate(shards, start=1):
        name = WEIGHTS
        if len(shards) > 1:
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {key: value for rule in shard for key, value in _convert(reader, rule).items()}
        save_file(tensors, str(directory / name), metadata={"format": "pt"})
        total += sum(tensor.nbytes for tensor in tensors.values())
        numbers += sum(tensor.numel() for tensor in tensors.values())
        weight_map.update(dict.fromkeys(tensors, name))
        files.append(directory / name)
        progress(f"{name}: {len(tensors)} tensors")
    if len(shards) > 1:
        with atomic_write(directory / INDEX) as stream:
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            json.dump(index, stream, indent=2, sort_keys=True)
        files.append(directory / INDEX)
    return files, numbers


def _plan(reader: CheckpointReader, rules: Sequence[Rule]) -> Iterator[list[Rule]]:
    shard: list[Rule] = []
    size = 0
    for rule in rules:
        numbers = sum(math.prod(shape) for shape in rule.shapes().values())
        bytes_ = numbers * reader.dtype(rule.megatron).itemsize
        if shard and size + bytes_ > MAX_SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(rule)
        size += bytes_
    if shard:
        yield shard


def _convert(reader: CheckpointReader, rule: Rule) -> dict[str, Tensor]:
    whole = reader.tensor(rule.megatron)
    tail = () if rule.columns is None else (rule.columns,)
    rows = whole.shape[0]
    fits = rows == rule.rows or (rule.padded and rows > rule.rows)
    if not fits or tuple(whole.shape[1:]) != tail:
        raise ArtifactError(
            f"{rule.megatron}: has shape {tuple(whole.shape)} in the checkpoint, "
            f"the architecture says {(rule.rows, *tail)}"
        )
    return pieces(rule, whole)
