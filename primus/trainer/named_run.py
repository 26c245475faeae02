"""Finding a run, and the tokenizer that it was trained with, by what a person types."""

from __future__ import annotations

from pathlib import Path

from primus.artifacts.tokens import TokenizerManifest
from primus.config.newest import newest_first
from primus.config.paths import RUNS
from primus.errors import ArtifactError, UserError
from primus.trainer import checkpoint_directory

TOKENIZERS = Path("output") / "tokenizer"


def find_run(name: str, *, newest: bool = False) -> Path:
    """The directory of the run that `name` means: an experiment, experiment/key, or a path.

    Args:
        newest: of several runs of an experiment take the newest that has a checkpoint or an
            export; where none has, the newest.

    Raises:
        UserError: there is none, or there are several.
    """
    for path in (Path(name), RUNS / name):
        if (path / "run.json").is_file():
            return path
    runs = newest_first(path.parent for path in (RUNS / name).glob("*/run.json"))
    if len(runs) == 1 or (runs and newest):
        return next(filter(_has_model, runs), runs[0])
    if runs:
        keys = ", ".join(sorted(f"{run.parent.name}/{run.name}" for run in runs))
        raise UserError(f"RUN = {name}: has {len(runs)} runs. Fix: name one of {keys}")
    raise UserError(
        f"RUN = {name}: no run.json there or under {RUNS / name}. "
        "Fix: name an experiment that was trained, or the path of a run"
    )


def _has_model(run: Path) -> bool:
    checkpoints = checkpoint_directory.newest_first(run / "checkpoints")
    return bool(checkpoints) or (run / "hf/manifest.json").is_file()


def find_tokenizer(fingerprint: str, *directories: Path) -> Path:
    """The manifest of a tokenizer with this fingerprint.

    Args:
        directories: look there too, before the `output/tokenizer` of this directory.

    Raises:
        UserError: there is none.
    """
    for directory in (*directories, TOKENIZERS):
        for path in sorted(directory.glob("*/*/manifest.json")):
            try:
                if TokenizerManifest.load(path).fingerprint == fingerprint:
                    return path
            except ArtifactError:
                continue
    raise UserError(
        f"--tokenizer: none under {TOKENIZERS} has the run's fingerprint {fingerprint}. "
        "Fix: name the tokenizer's manifest"
    )
