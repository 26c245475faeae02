"""What the export stage promises."""

from __future__ import annotations

from typing import Any, ClassVar

from primus.artifacts.manifest import Files, Manifest


class ExportManifest(Manifest):
    """A Hugging Face model directory, which is the directory of the manifest.

    Attributes:
        checkpoint: name of the checkpoint that was exported.
        parameters: numbers in the weight files.
        dtype: of the weights.
        settings: of the export, beside those of the run; empty where no experiment asked for it.
        files: every file of the model by path relative to the manifest.
    """

    kind: ClassVar[str] = "export"

    experiment: str
    key: str
    architecture: str
    checkpoint: str
    checkpoint_manifest_sha256: str
    tokenizer_fingerprint: str
    parameters: int
    dtype: str
    settings: dict[str, Any] = {}
    files: Files
