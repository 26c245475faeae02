"""Which checkpoint of another run a run starts from: decided once, at its first start. No torch.

The other run may go on meanwhile: at a restart its newest checkpoint would be another one.
"""

from __future__ import annotations

from pathlib import Path

from primus.artifacts.run import StartedFrom
from primus.errors import UserError
from primus.files import sha256_file
from primus.trainer.checkpoint_directory import MANIFEST, iteration_of, newest_first

FILE = "started_from.json"


def choose(named: Path, directory: Path | None) -> Path:
    """The checkpoint that `load_checkpoint` means.

    Args:
        named: a checkpoint, a directory of checkpoints, or a run; of several the newest.
        directory: of the run that starts from it; None where there is no run.

    Raises:
        UserError: there is none; or the one from which this run has started is gone, or changed.
        ArtifactError: what the run has noted of it is damaged.
    """
    if directory is not None and (directory / FILE).exists():
        return _as_before(named, StartedFrom.load(directory / FILE))
    if iteration_of(named) is not None:
        return named
    for root in (named, named / "checkpoints"):
        if found := newest_first(root):
            return found[0]
    raise UserError(
        f"load_checkpoint = {named}: holds no checkpoint. Fix: name a run or a checkpoint"
    )


def _as_before(named: Path, noted: StartedFrom) -> Path:
    path = Path(noted.checkpoint)
    manifest = path / MANIFEST
    if manifest.is_file() and sha256_file(manifest) == noted.manifest_sha256:
        return path
    why = "has changed since" if manifest.is_file() else "is not there any more"
    raise UserError(
        f"load_checkpoint = {named}: this run has started from {path}, which {why}. "
        "Fix: restore it, or start a run of its own: another seed or another experiment name"
    )


def note(directory: Path, checkpoint: Path) -> None:
    """Keep in the run's directory which checkpoint it has started from, if that is not there yet.

    Raises:
        OSError: it cannot be written.
    """
    if not (directory / FILE).exists():
        digest = sha256_file(checkpoint / MANIFEST)
        StartedFrom(checkpoint=str(checkpoint), manifest_sha256=digest).save(directory / FILE)
