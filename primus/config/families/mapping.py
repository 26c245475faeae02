"""How a Megatron model and a published Hugging Face model correspond: names and numbers only.

A Megatron tensor is a pile of blocks of rows of published tensors. The pile is read top-down to
import and taken apart to export, so that one declaration serves both directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

REQUIRED = object()


@dataclass(frozen=True)
class Block:
    """`count` rows of the published tensor `name`, from row `first`."""

    name: str
    first: int
    count: int


@dataclass(frozen=True)
class Rule:
    """One Megatron tensor.

    Attributes:
        megatron: its name, with the numbers of its layer and expert in the whole model.
        blocks: its rows from the top.
        columns: None for a vector.
        copies: further published tensors equal to that of the one block.
        padded: it may have more rows below.
    """

    megatron: str
    blocks: tuple[Block, ...]
    columns: int | None = None
    copies: tuple[str, ...] = ()
    padded: bool = False

    @property
    def rows(self) -> int:
        """Rows without padding."""
        return sum(block.count for block in self.blocks)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each published tensor, copies included."""
        rows: dict[str, int] = {}
        for block in self.blocks:
            rows[block.name] = rows.get(block.name, 0) + block.count
        rows |= dict.fromkeys(self.copies, self.rows)
        tail = () if self.columns is None else (self.columns,)
        return {name: (count, *tail) for name, count in rows.items()}


@dataclass(frozen=True)
class Field:
    """One entry of config.json that describes the architecture.

    Attributes:
        name: dotted where it stands in a group.
        value: what the settings say.
        key: the setting from which it follows; "" where Megatron-core has a constant.
        default: what transformers takes where the entry is absent.
    """

    name: str
    value: Any
    key: str = ""
    default: Any = REQUIRED


@dataclass(frozen=True)
class Objection:
    """Why a family does not cover some settings: `key` would have to be one of `wanted`."""

    key: str
    value: Any
    wanted: tuple[Any, ...]


def wants(settings: Any, **values: Any) -> Iterator[Objection]:
    """An objection for each setting that has another value."""
    for key, wanted in values.items():
        if (value := getattr(settings, key)) != wanted:
            yield Objection(key, value, (wanted,))


def weight(megatron: str, name: str, rows: int, columns: int | None = None) -> Rule:
    """One tensor that is the same in both; without `columns` a vector."""
    return Rule(megatron, (Block(name, 0, rows),), columns)


def piled(megatron: str, names: Iterable[str], rows: int, columns: int | None = None) -> Rule:
    """Several tensors of `rows` rows each, one below the other."""
    return Rule(megatron, tuple(Block(name, 0, rows) for name in names), columns)


def interleaved(
    megatron: str, parts: Iterable[tuple[str, int]], groups: int, columns: int | None = None
) -> Rule:
    """Several tensors cut into `groups`, group by group.

    Args:
        parts: name and rows per group.
    """
    parts = list(parts)
    blocks = [Block(name, group * count, count) for group in range(groups) for name, count in parts]
    return Rule(megatron, tuple(blocks), columns)
