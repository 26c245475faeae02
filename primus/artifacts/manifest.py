"""The base of every JSON file that one stage writes and another reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, TypeVar

from blake3 import blake3
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from typing_extensions import Self

from primus.errors import ArtifactError
from primus.files import atomic_write, blake3_file, read_json, sha256_file


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


class _Record(BaseModel):
    """A file that a manifest vouches for: its size in bytes and its hash in hex."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # The name of the hash, and of its field.
    algorithm: ClassVar[str]
    field: ClassVar[str]

    size: int

    @staticmethod
    def hash_of(path: Path) -> str:
        """Hex hash of the file's bytes."""
        raise NotImplementedError

    @staticmethod
    def hasher() -> Any:
        """What takes the file's bytes by `update`, in order, and gives `hexdigest`."""
        raise NotImplementedError

    @property
    def digest(self) -> str:
        """The hash, whichever it is."""
        return str(getattr(self, self.field))

    @classmethod
    def of(cls, path: Path) -> Self:
        """Measure the file at `path`."""
        return cls.model_validate({"size": path.stat().st_size, cls.field: cls.hash_of(path)})

    def verify(self, path: Path) -> None:
        """Compare the file at `path` with this record.

        Raises:
            ArtifactError: the file is missing, or its size or hash differs (both are named).
        """
        self.verify_size(path)
        self.verify_digest(path, self.hash_of(path))

    def verify_size(self, path: Path) -> None:
        """Compare the size of the file at `path`; reads nothing.

        Raises:
            ArtifactError: the file is missing, or its size differs.
        """
        if not path.is_file():
            raise ArtifactError(f"{path}: missing")
        size = path.stat().st_size
        if size != self.size:
            raise ArtifactError(f"{path}: has {size} bytes, its manifest says {self.size}")

    def verify_digest(self, path: Path, digest: str) -> None:
        """Compare the hash that the file at `path` was found to have.

        Raises:
            ArtifactError: it differs (both are named).
        """
        if digest != self.digest:
            raise ArtifactError(
                f"{path}: {self.algorithm} {digest}, its manifest says {self.digest}"
            )


class FileRecord(_Record):
    """A file by its SHA-256, which tools of every machine compute."""

    algorithm = "SHA-256"
    field = "sha256"

    sha256: str

    @staticmethod
    def hash_of(path: Path) -> str:
        """Hex SHA-256."""
        return sha256_file(path)

    @staticmethod
    def hasher() -> Any:
        """Of hashlib."""
        return hashlib.sha256()


class Blake3Record(_Record):
    """A file by its BLAKE3, in a third of the time of SHA-256: for files of many gigabytes."""

    algorithm = "BLAKE3"
    field = "blake3"

    blake3: str

    @staticmethod
    def hash_of(path: Path) -> str:
        """Hex BLAKE3."""
        return blake3_file(path)

    @staticmethod
    def hasher() -> Any:
        """Of the blake3 package."""
        return blake3()


AnyRecord = FileRecord | Blake3Record
_Files = TypeVar("_Files", bound=Mapping[str, Any])


def _inside(files: _Files) -> _Files:
    for name in files:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or not name.isprintable():
            raise ValueError(f"{name!r} does not lie beside the manifest")
    return files


# By path relative to the manifest; none leads out of its directory.
Files = Annotated[dict[str, FileRecord], AfterValidator(_inside)]
# As `Files`; those of older versions have SHA-256 here too.
LargeFiles = Annotated[dict[str, AnyRecord], AfterValidator(_inside)]
