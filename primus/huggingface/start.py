"""The model of a weights manifest, checked before a run starts from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from primus.artifacts.weights import WeightsManifest
from primus.config.families import Family
from primus.errors import ArtifactError, DataError
from primus.huggingface.compare import check_model
from primus.huggingface.directory import ModelDirectory


def open_start(manifest: Path, settings: Any) -> tuple[ModelDirectory, Family]:
    """The model's directory and family; it has the architecture and the tensors of the settings.

    Raises:
        UserError: it has not; see `check_model`.
    """
    directory = ModelDirectory(Path(WeightsManifest.load(manifest).directory))
    return directory, check_model(directory, settings)


def verify(manifest: Path, *, part: int = 0, parts: int = 1) -> None:
    """Hash the model's files again.

    Args:
        part, parts: which of how many shares of them; ranks divide the work.

    Raises:
        DataError: a file was changed or removed since the manifest was written.
    """
    weights = WeightsManifest.load(manifest)
    for name in sorted(weights.files)[part::parts]:
        try:
            weights.files[name].verify(Path(weights.directory) / name)
        except ArtifactError as error:
            raise DataError(
                f"load_hf = {weights.source}: changed since the weights stage read it: {error}. "
                f"Fix: restore the file, or remove {manifest} to start from what is there now"
            ) from error
