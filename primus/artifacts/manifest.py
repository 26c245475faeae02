"""The base of every JSON file that one stage writes and another reads."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from typing_extensions import Self

from primus.errors import ArtifactError
from primus.files import atomic_write, read_json, sha256_file


class Manifest(BaseModel):
    """A small JSON file with a `kind` and a `schema_version`; keys sorted, written atomically."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: ClassVar[str]
    schema_version: ClassVar[int] = 1

    def save(self, path: Path | str) -> None:
        """Write the manifest to `path` through a temporary name, with fsync and rename."""
        head = {"kind": self.kind, "schema_version": self.schema_version}
        with atomic_write(path) as stream:
            json.dump(head | self.model_dump(mode="json"), stream, indent=2, sort_keys=True)
            stream.write("\n")

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read and check a manifest.

        Raises:
            ArtifactError: the file is missing, not JSON, of another kind or version, or has
                unknown, missing or wrongly typed fields.
        """
        try:
            content = read_json(path)
        except OSError as error:
            raise ArtifactError(f"{path}: cannot read the {cls.kind}: {error.strerror}") from error
        except ValueError as error:
            raise ArtifactError(f"{path}: not a {cls.kind}: not JSON ({error})") from error
        return cls.from_content(content, str(path))

    @classmethod
    def from_content(cls, content: object, path: str) -> Self:
        """Check what a manifest's JSON said; raises as `load`.

        Args:
            path: where it stands, for messages.
        """
        if not isinstance(content, dict):
            raise ArtifactError(f"{path}: not a {cls.kind}: not a JSON object")
        content = dict(content)
        kind, version = content.pop("kind", None), content.pop("schema_version", None)
        if kind != cls.kind or version != cls.schema_version:
            raise ArtifactError(
                f"{path}: is {kind!r} version {version!r}, "
                f"wanted {cls.kind!r} version {cls.schema_version!r}"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ArtifactError(f"{path}: {where}: {first['msg']}") from error


class FileRecord(BaseModel):
    """A file that a manifest vouches for: its size in bytes and hex SHA-256."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Self:
        """Measure the file at `path`."""
        return cls(size=path.stat().st_size, sha256=sha256_file(path))

    def verify(self, path: Path) -> None:
        """Compare the file at `path` with this record.

        Raises:
            ArtifactError: the file is missing, or its size or hash differs (both are named).
        """
        if not path.is_file():
            raise ArtifactError(f"{path}: missing")
        size = path.stat().st_size
        if size != self.size:
            raise ArtifactError(f"{path}: has {size} bytes, its manifest says {self.size}")
        digest = sha256_file(path)
        if digest != self.sha256:
            raise ArtifactError(f"{path}: SHA-256 {digest}, its manifest says {self.sha256}")


def _inside(files: dict[str, FileRecord]) -> dict[str, FileRecord]:
    for name in files:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or not name.isprintable():
            raise ValueError(f"{name!r} does not lie beside the manifest")
    return files


# By path relative to the manifest; none leads out of its directory.
Files = Annotated[dict[str, FileRecord], AfterValidator(_inside)]
