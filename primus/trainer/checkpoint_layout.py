"""How torch has stored a tensor in a file, from what stands before and after its numbers."""

from __future__ import annotations

import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from primus.errors import ArtifactError

# What torch writes before the numbers of a tensor, or after them, is less.
_END = 2 << 10


@dataclass(frozen=True)
class Layout:
    """How a tensor is stored.

    Attributes:
        shape: a tensor without memory, of its shape and strides and of no other storage.
        head: all that comes before its numbers.
    """

    shape: Tensor
    head: bytes


def look_at(path: Path, place: Any) -> Layout | None:
    """How a tensor is stored in a file; None where torch has to read it.

    Args:
        place: of the tensor, as the index tells it.

    Raises:
        ArtifactError: the file cannot be read.
        RuntimeError, ValueError, UnpicklingError: the tensor is torn.
    """
    try:
        with open(path, "rb", 0) as file:
            return _layout(_Ends(file.fileno(), place.offset, place.length))
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error


def _layout(content: Any) -> Layout | None:
    archive: Any = torch._C.PyTorchFileReader(content)
    order = archive.get_record("byteorder") if archive.has_record("byteorder") else b""
    if order.decode() != sys.byteorder or not archive.has_record("data/0"):
        return None
    start = archive.get_record_offset("data/0")
    content.seek(0)
    shape = torch.load(content, map_location="meta", weights_only=True)
    content.seek(0)
    return Layout(shape, content.read(start))


class _Ends(io.RawIOBase):
    """A range of a file, both of whose ends have been read: all that torch asks for of a tensor.

    It asks some twenty times for a few bytes.
    """

    def __init__(self, file: int, offset: int, length: int) -> None:
        self._file, self._offset, self._length = file, offset, length
        self._head = os.pread(file, min(length, _END), offset)
        self._tail_at = max(0, length - _END)
        self._tail = os.pread(file, length - self._tail_at, offset + self._tail_at)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._at = offset + {os.SEEK_CUR: self._at, os.SEEK_END: self._length}.get(whence, 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        start, stop = self._at, min(self._at + len(buffer), self._length)
        if stop <= len(self._head):
            found = self._head[start:stop]
        elif start >= self._tail_at:
            found = self._tail[start - self._tail_at : stop - self._tail_at]
        else:
            found = os.pread(self._file, stop - start, self._offset + start)
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)
