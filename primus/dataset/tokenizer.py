"""A published tokenizer: loading it, and holding it against its fingerprint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from primus.artifacts.manifest import FileRecord
from primus.artifacts.tokens import TokenizerManifest
from primus.dataset.publish import verify_files
from primus.errors import DataError
from primus.files import canonical_json, read_json, sha256_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_JSON = "tokenizer.json"


@dataclass(frozen=True)
class LoadedTokenizer:
    """A verified tokenizer directory.

    Attributes:
        directory: holds tokenizer.json and what `transformers.AutoTokenizer` wants beside it.
    """

    manifest: TokenizerManifest
    directory: Path

    @property
    def json_path(self) -> Path:
        """The file that `tokenizers.Tokenizer.from_file` reads."""
        return self.directory / TOKENIZER_JSON

    def tokenizer(self) -> Tokenizer:
        """The tokenizer itself, without truncation and padding."""
        return read_tokenizer(self.json_path)


def load_tokenizer(manifest_path: Path | str) -> LoadedTokenizer:
    """Read a tokenizer's manifest and verify every file that it names.

    Raises:
        ArtifactError: the manifest cannot be read.
        DataError: as `verify_tokenizer`.
    """
    path = Path(manifest_path)
    manifest = TokenizerManifest.load(path)
    verify_tokenizer(manifest, path.parent)
    return LoadedTokenizer(manifest, path.parent)


def verify_tokenizer(manifest: TokenizerManifest, directory: Path) -> None:
    """Hold the tokenizer files in `directory` against their manifest.

    Raises:
        DataError: a file is missing or changed, or tokenizer.json is not the one of the
            fingerprint (both are named).
    """
    found = fingerprint(directory / TOKENIZER_JSON)
    if found != manifest.fingerprint:
        raise DataError(
            f"{directory / TOKENIZER_JSON}: fingerprint {found}, "
            f"but its manifest says {manifest.fingerprint}. "
            "Fix: restore the tokenizer, or move its directory away and run the stage again"
        )
    verify_files(manifest.files, directory)


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json; truncation and padding that it may ask for are switched off."""
    from tokenizers import Tokenizer

    tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def fingerprint(path: Path) -> str:
    """SHA-256 of a tokenizer.json, written canonically.

    Raises:
        DataError: the file is missing or not JSON.
    """
    try:
        return sha256_text(canonical_json(read_json(path)))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a tokenizer: {error}") from error


def describe(
    directory: Path, *, eod_id: int, source: str, trained_on: dict[str, FileRecord]
) -> TokenizerManifest:
    """The manifest of the tokenizer files in `directory`, all of which it vouches for."""
    ids = read_tokenizer(directory / TOKENIZER_JSON).get_vocab(with_added_tokens=True).values()
    return TokenizerManifest(
        fingerprint=fingerprint(directory / TOKENIZER_JSON),
        vocab_size=max(ids) + 1,
        eod_id=eod_id,
        files={path.name: FileRecord.of(path) for path in sorted(directory.iterdir())},
        source=source,
        trained_on=trained_on,
    )
