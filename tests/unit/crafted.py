"""Checkpoints that would run code, their manifests forged to match."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from primus.artifacts.manifest import FileRecord
from primus.trainer.checkpoint_directory import MANIFEST, payload


class Payload:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.mkdir, (str(self.path), 0o700)


def vouch(directory: Path) -> None:
    """Have the manifest list every file of a checkpoint as it is now."""
    path = directory / MANIFEST
    files = {
        str(file.relative_to(directory)): FileRecord.of(file).model_dump()
        for file in payload(directory)
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | {"files": files}))


def _index(directory: Path, made: Path) -> None:
    (directory / ".metadata").write_bytes(pickle.dumps(Payload(made)))


def _hidden(directory: Path, made: Path) -> None:
    """Everything that the index held, and one attribute more."""
    index = pickle.loads((directory / ".metadata").read_bytes())  # noqa: S301
    index.planner_data = Payload(made)
    (directory / ".metadata").write_bytes(pickle.dumps(index))


def _common(directory: Path, made: Path) -> None:
    state = torch.load(directory / "common.pt", weights_only=True)
    torch.save(state | {"progress": Payload(made)}, directory / "common.pt")


def _old_common(directory: Path, made: Path) -> None:
    """In torch's format before zip, which begins with another pickle."""
    torch.save(
        {"progress": Payload(made)},
        directory / "common.pt",
        _use_new_zipfile_serialization=False,
    )


def _object_at(directory: Path, name: str, made: Path) -> None:
    """The states of the random generators, elsewhere."""
    index = pickle.loads((directory / ".metadata").read_bytes())  # noqa: S301
    torch.save([Payload(made)], crafted := io.BytesIO())
    (entry,) = [at for at in index.storage_data if at.fqn.startswith("generators/")]
    file = directory / name
    with open(file, "ab") as stream:
        index.storage_data[entry].offset = stream.tell()
        index.storage_data[entry].length = stream.write(crafted.getvalue())
    index.storage_data[entry].relative_path = name
    (directory / ".metadata").write_bytes(pickle.dumps(index))


def _object(directory: Path, made: Path) -> None:
    _object_at(directory, "__0_0.distcp", made)


def _elsewhere(directory: Path, made: Path) -> None:
    _object_at(directory, "../__0_0.distcp", made)


WAYS: dict[str, Callable[[Path, Path], None]] = {
    "index": _index,
    "hidden in the index": _hidden,
    "common": _common,
    "common, old format": _old_common,
    "object": _object,
    "object in a file elsewhere": _elsewhere,
}


def forge(directory: Path, way: str, made: Path) -> None:
    """Change a checkpoint so that loading it makes `made`, and have its manifest vouch for it."""
    WAYS[way](directory, made)
    vouch(directory)


def load_as_torch_does(directory: Path) -> list[Any]:
    """Everything that torch would unpickle of a checkpoint of one rank, by torch's own means."""
    index = pickle.loads((directory / ".metadata").read_bytes())  # noqa: S301
    found = [index, torch.load(directory / "common.pt", weights_only=False)]
    for at, place in getattr(index, "storage_data", {}).items():
        if at.fqn.startswith("generators/"):
            content = (directory / place.relative_path).read_bytes()
            part = content[place.offset : place.offset + place.length]
            found.append(torch.load(io.BytesIO(part), weights_only=False))
    return found
