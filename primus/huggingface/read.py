"""Published tensors as slices of Megatron's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from primus.config.families.config_json import block_scales
from primus.config.families.mapping import Block, Rule
from primus.errors import DataError
from primus.huggingface.directory import SCALE, ModelDirectory


def fill(directory: ModelDirectory, rule: Rule, target: Tensor, offset: Sequence[int]) -> None:
    """Fill `target`, a slice of the rule's Megatron tensor; only what it needs is read.

    Rows of padding become 0. Values are cast to the type of `target`.

    Args:
        target: (rows) or (rows, columns), changed in place.
        offset: where the slice begins in the whole tensor.

    Raises:
        DataError: a copy differs from its original.
    """
    top, bottom = offset[0], offset[0] + target.shape[0]
    columns = slice(offset[1], offset[1] + target.shape[1]) if target.dim() == 2 else None
    start = 0
    for block in rule.blocks:
        first, last = max(start, top), min(start + block.count, bottom)
        if first < last:
            rows = slice(block.first + first - start, block.first + last - start)
            piece = _read(directory, block.name, rows, columns)
            _check_copies(directory, rule, rows, columns, piece)
            with torch.no_grad():
                target[first - top : last - top].copy_(piece)
        start += block.count
    if bottom > start:
        with torch.no_grad():
            target[max(0, start - top) :].zero_()


def _read(directory: ModelDirectory, name: str, rows: slice, columns: slice | None) -> Tensor:
    part = directory.slice(name)
    tensor: Tensor = part[rows] if columns is None else part[rows, columns]
    if tensor.dtype != torch.float8_e4m3fn:
        return tensor
    return _scaled(directory, name, tensor, rows, columns)


def _scaled(
    directory: ModelDirectory, name: str, tensor: Tensor, rows: slice, columns: slice | None
) -> Tensor:
    """A slice of a float8 weight in float32: each block of it has a scale of its own."""
    size = block_scales(directory.config)
    if size is None or columns is None or f"{name}{SCALE}" not in directory.tensors:
        raise DataError(
            f"{directory.path}: {name} is in float8 without scales. Fix: restore the published "
            "files, or name a version of the model in bfloat16"
        )
    scales = directory.slice(f"{name}{SCALE}")[:].float()
    of_rows = torch.arange(rows.start, rows.stop) // size[0]
    of_columns = torch.arange(columns.start, columns.stop) // size[1]
    scaled: Tensor = tensor.float() * scales[of_rows][:, of_columns]
    return scaled


def _check_copies(
    directory: ModelDirectory, rule: Rule, rows: slice, columns: slice | None, piece: Tensor
) -> None:
    for copy in rule.copies:
        if not torch.equal(_read(directory, copy, rows, columns), piece):
            raise DataError(
                f"{directory.path}: {copy} differs from {rule.blocks[0].name}, and Megatron-core "
                "has one tensor for both. Fix: use a model whose tensors are equal"
            )


def pieces(rule: Rule, whole: Tensor) -> dict[str, Tensor]:
    """The published tensors of a rule from its whole Megatron tensor; `fill`'s inverse.

    Args:
        whole: (rows, …) with or without padding.
    """
    parts: dict[str, list[tuple[Block, Tensor]]] = {}
    start = 0
    for block in rule.blocks:
        parts.setdefault(block.name, []).append((block, whole[start : start + block.count]))
        start += block.count
    found = {
        name: torch.cat([rows for _, rows in sorted(blocks, key=lambda pair: pair[0].first)])
        for name, blocks in parts.items()
    }
    original = rule.blocks[0].name
    return found | {copy: found[original].clone() for copy in rule.copies}
