"""A Hugging Face directory as transformers' model and tokenizer, ready to be asked."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from primus.artifacts.export import ExportManifest
from primus.errors import DataError, UnavailableError, UserError
from primus.huggingface.directory import ModelDirectory

MANIFEST = "manifest.json"
_SHOWN = 3


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, and its tokenizer.

    Attributes:
        model, tokenizer: transformers'.
        device: where the weights are.
        exported: what our export says of the directory; None for another's model.
    """

    model: Any
    tokenizer: Any
    device: torch.device
    exported: ExportManifest | None

    @property
    def context(self) -> int:
        """Positions for which the model was made."""
        return int(self.model.config.max_position_embeddings)

    @property
    def dtype(self) -> str:
        """Of the weights, as torch names it."""
        return str(self.model.dtype).removeprefix("torch.")

    @cached_property
    def known_ids(self) -> frozenset[int]:
        """Ids that the tokenizer can turn into text; a model may have more rows."""
        return frozenset(self.tokenizer.get_vocab().values())

    @property
    def ends(self) -> list[int]:
        """Ids that end a document; none where the model names none."""
        found = self.model.generation_config.eos_token_id
        return [] if found is None else [found] if isinstance(found, int) else list(found)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, as those of the training text were made.

        Before a document our training data has the end of another one; so has a prompt without
        text. A model of others gets the special tokens that its tokenizer adds.
        """
        ours = self.exported is not None
        ids = list(self.tokenizer(text, add_special_tokens=not ours)["input_ids"])
        return ids or self.ends[:1]

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`, special ones left out."""
        text: str = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def verified_export(directory: Path) -> ExportManifest | None:
    """What our export says of a directory, after hashing its files; None for another's model.

    Raises:
        ArtifactError: a file was changed, or the manifest cannot be read.
    """
    path = directory / MANIFEST
    if not path.is_file() or not _is_ours(path):
        return None
    manifest = ExportManifest.load(path)
    for name, record in sorted(manifest.files.items()):
        record.verify(directory / name)
    return manifest


def _is_ours(path: Path) -> bool:
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return True  # loading it says what is wrong
    return isinstance(content, dict) and content.get("kind") == ExportManifest.kind


def device_of(name: str | None, key: str = "--device") -> torch.device:
    """The device of this name; None: a GPU where there is one.

    Args:
        key: what named it, for the error.

    Raises:
        UserError: torch knows no such device, or it is not here.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"{key} = {name}: {_first_line(error)}. Fix: cpu, or cuda:0") from error
    return device


def load_model(directory: Path, device: torch.device) -> LoadedModel:
    """Load a directory whose weights are safetensors; no code of it runs, no network is asked.

    Raises:
        DataError: the directory is no complete model with a tokenizer.
        ArtifactError: a file is not what our export wrote.
        UnavailableError: the weights do not fit on the device.
    """
    exported = verified_export(directory)
    # Asked for before transformers looks: what is missing is named, with its fix.
    _ = ModelDirectory(directory).files
    with warnings.catch_warnings():
        # Of transformers' modules while they are imported.
        warnings.simplefilter("ignore")
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
            model, found = AutoModelForCausalLM.from_pretrained(
                directory,
                dtype="auto",
                local_files_only=True,
                output_loading_info=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
        except Exception as error:
            # Whatever is in the directory, transformers and its parsers raise errors of any kind.
            raise DataError(
                f"{directory}: transformers cannot load it: {_first_line(error)}. "
                "Fix: name a complete model with its tokenizer"
            ) from error
    _require_all(directory, found)
    try:
        model = model.to(device).eval()
    except torch.OutOfMemoryError as error:
        raise UnavailableError(
            f"{directory}: does not fit into the memory of {device}. Fix: --device cpu"
        ) from error
    return LoadedModel(model, tokenizer, device, exported)


def _require_all(directory: Path, found: dict[str, Any]) -> None:
    # transformers fills these with random numbers and only warns.
    absent = [*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])]
    if absent:
        more = " …" * (len(absent) > _SHOWN)
        raise DataError(
            f"{directory}: {len(absent)} tensors are missing or of another shape than config.json "
            f"says: {', '.join(sorted(absent)[:_SHOWN])}{more}. Fix: name a complete model"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
