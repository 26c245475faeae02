"""What the weights stage promises."""

from __future__ import annotations

from typing import Any, ClassVar

from primus.artifacts.manifest import Files, Manifest


class WeightsManifest(Manifest):
    """A Hugging Face model from which runs start.

    Attributes:
        source: as configured, a directory or a hub id.
        revision: the hub's commit; null for a directory.
        directory: where the files are; a relative path starts at the root of the project.
        files: config.json, the index and the safetensors by name.
        config: the content of config.json.
        fingerprint: SHA-256 over the hashes of `files`.
    """

    kind: ClassVar[str] = "weights"

    source: str
    revision: str | None
    directory: str
    files: Files
    config: dict[str, Any]
    fingerprint: str
