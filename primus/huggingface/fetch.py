"""A model of the hub or of a directory, with a fingerprint of what is read of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from primus.artifacts.manifest import FileRecord
from primus.artifacts.weights import WeightsManifest
from primus.config.start_model import CONFIG, INDEX, WEIGHTS, HubModel, hub_model
from primus.errors import UnavailableError
from primus.files import canonical_json, sha256_text
from primus.huggingface.directory import ModelDirectory


def fetch(load_hf: str, download: Path) -> WeightsManifest:
    """Hash every file of the model that training reads.

    Args:
        download: where a model of the hub goes; one that is there already is completed.

    Raises:
        UnavailableError: the hub does not give the model.
        DataError: it has no config.json, or no safetensors that can be read.
    """
    hub = hub_model(load_hf)
    revision = _commit(hub) if hub else None
    path = Path(load_hf)
    if hub and revision:
        path = download
        _download(hub, revision, download)
    directory = ModelDirectory(path)
    config = directory.config
    # Reads their headers: what only bears the name is found before a training waits for it.
    len(directory.tensors)
    records = {}
    for name in directory.files:
        records[name] = FileRecord.of(path / name)
        print(f"{path / name}: {records[name].sha256[:16]}", flush=True)
    hashes = {name: record.sha256 for name, record in records.items()}
    return WeightsManifest(
        source=load_hf,
        revision=revision,
        directory=str(path),
        files=records,
        config=config,
        fingerprint=sha256_text(canonical_json(hashes)),
    )


def _token() -> str | Literal[False]:
    # False: not one that somebody stored on this machine either.
    return os.environ.get("HF_TOKEN") or False


def _commit(hub: HubModel) -> str:
    from huggingface_hub import HfApi

    try:
        found = HfApi(token=_token()).model_info(hub.repo, revision=hub.revision).sha
    except Exception as error:
        # Errors of the HTTP client that the library happens to use come through as they are.
        raise _unavailable(hub, error) from error
    if found is None:
        raise _unavailable(hub, ValueError("the hub names no commit"))
    return found


def _download(hub: HubModel, revision: str, directory: Path) -> None:
    from huggingface_hub import snapshot_download

    try:
        # Exactly these files: no code, no other formats.
        snapshot_download(
            hub.repo,
            revision=revision,
            local_dir=directory,
            token=_token(),
            allow_patterns=[CONFIG, INDEX, WEIGHTS],
        )
    except Exception as error:
        raise _unavailable(hub, error) from error


def _unavailable(hub: HubModel, error: Exception) -> UnavailableError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UnavailableError(
        f"load_hf = {hub.repo}: cannot be downloaded: {reason}. Fix: check the name and its "
        "revision, the network and HF_TOKEN, or give a directory that holds the model"
    )
