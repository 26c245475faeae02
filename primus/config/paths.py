"""Where every stage's artefact lives. The one definition, for rules and for commands."""

from __future__ import annotations

import os
from pathlib import Path

from primus.config.identity import StageKey
from primus.config.schema.keys import Stage
from primus.errors import UnavailableError

# The names in braces are Snakemake's wildcards.
ARTIFACT: dict[Stage, str] = {
    "tokenizer": "output/tokenizer/{dataset}/{key}/manifest.json",
    "data": "output/data/{dataset}/{key}/manifest.json",
    "samples": "output/samples/{dataset}/{key}/manifest.json",
    "shapes": "output/gemm/{experiment}/{key}/shapes.jsonl",
    "tune": "output/gemm/{experiment}/{key}/tuned.jsonl",
    "weights": "output/weights/{experiment}/{key}/manifest.json",
    "train": "output/runs/{experiment}/{key}/train.json",
    "export": "output/runs/{experiment}/{key}/hf/manifest.json",
    "report": "output/runs/{experiment}/{key}/report.html",
}
REPORT_JSON = "output/runs/{experiment}/{key}/report.json"
LOSS_PNG = "output/runs/{experiment}/{key}/loss.png"
PREFLIGHT = "output/preflight/{experiment}/{key}/preflight.json"
SETTINGS = "output/settings/{owner}/{stage}.{digest}.json"


def require_writable(directory: Path) -> None:
    """Look whether files can be made in a directory, or where it will be made; makes nothing.

    Raises:
        UnavailableError: they cannot; the first directory that refuses is named.
    """
    found = directory.absolute()
    while not os.path.lexists(found):
        found = found.parent
    if not found.is_dir():
        why = "is no directory"
    elif not os.access(found, os.W_OK | os.X_OK):
        why = "cannot be written to"
    else:
        return
    raise UnavailableError(
        f"{found}: {why}. Fix: make it writable, or start in a directory that is"
    )


def owner_kind(stage: Stage) -> str:
    """The wildcard that names the owner of a stage: `dataset` or `experiment`."""
    return "dataset" if "{dataset}" in ARTIFACT[stage] else "experiment"


def log_pattern(stage: Stage) -> str:
    """The log of a stage's last attempt; Snakemake deletes it when the next one starts."""
    return f"output/logs/{stage}/{{{owner_kind(stage)}}}.{{key}}.log"


def artifact(stage: StageKey) -> str:
    """Path of what the stage makes."""
    return ARTIFACT[stage.stage].format(**{owner_kind(stage.stage): stage.owner}, key=stage.key)


def preflight(train: StageKey) -> str:
    """Path of what was measured of the nodes for a run; no stage makes or reads it."""
    return PREFLIGHT.format(experiment=train.owner, key=train.key)


def settings_file(stage: StageKey) -> str:
    """Path of the frozen settings that the stage reads."""
    return SETTINGS.format(owner=stage.owner, stage=stage.stage, digest=stage.digest)
