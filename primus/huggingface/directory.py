"""A Hugging Face model directory: its config.json, its tensors, slices of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from primus.errors import DataError
from primus.files import read_json

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
# Ends the name of the scales of a float8 tensor.
SCALE = "_scale_inv"
INDEX = "model.safetensors.index.json"
# In the model's own directory, whatever the index says.
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}\.safetensors")


@dataclass(frozen=True)
class Stored:
    """Where a tensor is: its file, safetensors' name of its type, its shape."""

    file: str
    dtype: str
    shape: tuple[int, ...]


class ModelDirectory:
    """Read-only; files are opened when asked for and stay open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: dict[str, Any] = {}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json.

        Raises:
            DataError: missing or no JSON object.
        """
        return self._json(CONFIG)

    @cached_property
    def weight_files(self) -> tuple[str, ...]:
        """The names of the safetensors, sorted.

        Raises:
            DataError: there are none, or one that the index names is missing.
        """
        names = self._indexed() if (self.path / INDEX).is_file() else [WEIGHTS]
        missing = [name for name in names if not (self.path / name).is_file()]
        if missing or not names:
            raise DataError(
                f"{self.path}: has no {', '.join(missing[:3]) or WEIGHTS}. Fix: name a directory "
                "with the model's safetensors; other formats are not read"
            )
        return tuple(names)

    def _indexed(self) -> list[str]:
        weights = self._json(INDEX).get("weight_map")
        names = weights.values() if isinstance(weights, dict) else [None]
        if not all(isinstance(name, str) and _FILE.fullmatch(name) for name in names):
            raise DataError(
                f"{self.path / INDEX}: weight_map does not name safetensors beside it. "
                "Fix: restore the file"
            )
        return sorted(set(names))

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that is read, by name."""
        index = (INDEX,) if (self.path / INDEX).is_file() else ()
        return (CONFIG, *index, *self.weight_files)

    @cached_property
    def tensors(self) -> Mapping[str, Stored]:
        """Every tensor by name.

        Raises:
            DataError: a file is damaged, or two files hold the same tensor.
        """
        found: dict[str, Stored] = {}
        for file in self.weight_files:
            handle = self._handle(file)
            for name in handle.keys():  # noqa: SIM118 - no mapping
                if name in found:
                    why = f"{name} is in {found[name].file} and in {file}"
                    raise DataError(f"{self.path}: {why}. Fix: restore the published files")
                part = handle.get_slice(name)
                found[name] = Stored(file, part.get_dtype(), tuple(part.get_shape()))
        return found

    def slice(self, name: str) -> Any:
        """A tensor to be indexed: only the part asked for is read."""
        return self._handle(self.tensors[name].file).get_slice(name)

    def _handle(self, file: str) -> Any:
        if file not in self._open:
            try:
                self._open[file] = safe_open(str(self.path / file), framework="pt")
            except (OSError, SafetensorError) as error:
                raise DataError(
                    f"{self.path / file}: cannot be read: {error}. Fix: restore the file"
                ) from error
        return self._open[file]

    def _json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            content = read_json(path)
        except OSError as error:
            reason = error.strerror
            raise DataError(
                f"{path}: cannot be read: {reason}. Fix: name a model's directory"
            ) from error
        except ValueError as error:
            raise DataError(f"{path}: is not JSON: {error}. Fix: restore the file") from error
        if not isinstance(content, dict):
            raise DataError(f"{path}: is not a JSON object. Fix: restore the file")
        return content
