"""A checkpoint of a run as a Hugging Face directory with its card and its manifest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from primus.artifacts.export import ExportManifest
from primus.artifacts.manifest import FileRecord
from primus.artifacts.run import CheckpointManifest, RunIdentity, TrainManifest
from primus.artifacts.timing import times_path
from primus.artifacts.tokens import TokenizerManifest
from primus.config.frozen import Values, with_defaults
from primus.config.problems import listed
from primus.errors import ArtifactError, DataError, UserError
from primus.files import atomic_write, replace_directory, require_writable, sha256_file
from primus.huggingface.card import README, CardFacts, Stated, model_card
from primus.huggingface.directory import INDEX
from primus.huggingface.write import Written, write_model
from primus.reports.reproduce import reproduce
from primus.trainer.checkpoint_directory import verify


def export_checkpoint(
    checkpoint: Path,
    run: TrainManifest | RunIdentity,
    tokenizer_path: Path,
    output: Path,
    stated: Stated | None = None,
    asked: Mapping[str, Any] | None = None,
) -> None:
    """Export a checkpoint of `run`; it is verified first.

    Args:
        stated: what the user says of the model, for its card.
        asked: settings of the export, for its manifest.

    Raises:
        DataError: the tokenizer is not the one of the run.
        ArtifactError: the checkpoint or the tokenizer is damaged.
    """
    tokenizer, directory = TokenizerManifest.load(tokenizer_path), output.parent.resolve()
    if tokenizer.fingerprint != run.tokenizer_fingerprint:
        raise DataError(
            f"{tokenizer_path}: fingerprint = {tokenizer.fingerprint}, but the run was trained "
            f"with {run.tokenizer_fingerprint}. Fix: restore the run's tokenizer"
        )
    shutil.rmtree(temporary := directory.with_name(f".{directory.name}.tmp"), ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        saved = verify(checkpoint, run.key)
        settings = Values(with_defaults(run.settings), "the run's settings")
        written = write_model(checkpoint, settings, temporary, eod_id=tokenizer.eod_id)
        for name, record in tokenizer.files.items():
            record.verify(source := tokenizer_path.parent / name)
            shutil.copyfile(source, temporary / name)
        with atomic_write(temporary / README) as stream:
            stream.write(_card(run, saved, settings, written, tokenizer, stated or Stated()))
        files = {path.name: FileRecord.of(path) for path in sorted(temporary.iterdir())}
        # An older export is replaced: it can be made again from its checkpoint. What somebody put
        # beside it cannot.
        replace_directory(temporary, directory, superseded=_of_an_export)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    manifest = ExportManifest(
        experiment=run.experiment,
        key=run.key,
        architecture=written.architecture,
        checkpoint=checkpoint.name,
        checkpoint_manifest_sha256=sha256_file(checkpoint / "manifest.json"),
        tokenizer_fingerprint=tokenizer.fingerprint,
        parameters=written.parameters,
        dtype=written.dtype,
        settings=dict(asked or {}),
        files=files,
    )
    manifest.save(output)
    print(
        f"{output.parent}: {written.parameters:,} numbers in {written.dtype} from {checkpoint.name}"
    )


def require_vacant(directory: Path) -> None:
    """Look that an export into `directory` replaces nothing but an export.

    Raises:
        UserError: something else is there. UnavailableError: nothing can be written there.
    """
    if not directory.resolve().name or Path.cwd().is_relative_to(directory.resolve()):
        raise UserError(f"{directory}: is the directory of this command. Fix: name a new one")
    if not os.path.lexists(directory):
        require_writable(directory.parent)
        return
    if not directory.is_dir():
        raise UserError(f"{directory}: is no directory. Fix: name a new one")
    manifest = directory / "manifest.json"
    # Also what an export that failed has left.
    own = {times_path(manifest).name}
    with suppress(ArtifactError):
        own |= {manifest.name, *ExportManifest.load(manifest).files}
    if others := sorted({path.name for path in directory.iterdir()} - own):
        raise UserError(
            f"{directory}: holds {listed(others)}, which is not of an export by this command. "
            "Fix: name a new directory"
        )


def _of_an_export(name: str) -> bool:
    """Whether an export of other shards may have written it, and a reader take it for a part."""
    return name in ("manifest.json", INDEX) or name.endswith(".safetensors")


def _card(
    run: TrainManifest | RunIdentity,
    saved: CheckpointManifest,
    settings: Values,
    written: Written,
    tokenizer: TokenizerManifest,
    stated: Stated,
) -> str:
    train = run if isinstance(run, TrainManifest) and run.iteration == saved.iteration else None
    untuned = {"gemm_tuning": {"enabled": False}} if saved.tuned_sha256 is None else {}
    again = reproduce(
        experiment=run.experiment,
        key=run.key,
        wanted=untuned | saved.settings | run.settings,
        iteration=saved.iteration,
        commit=saved.code_commit,
        dirty=saved.code_dirty,
    )
    return model_card(
        CardFacts(
            experiment=run.experiment,
            key=run.key,
            settings=settings,
            checkpoint=saved,
            train=train,
            written=written,
            tokenizer=tokenizer,
            commands=again.commands,
            checked=not again.caveat,
            stated=stated,
        )
    )
