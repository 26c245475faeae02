"""Where every stage's artefact lives. The one definition, for rules and for commands."""

from __future__ import annotations

from pathlib import Path

from primus.config.identity import StageKey
from primus.config.schema.keys import Stage

# <experiment>/<key> below is a run.
RUNS = Path("output") / "runs"
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
    "evaluate": "output/runs/{experiment}/{key}/eval.json",
    "report": "output/runs/{experiment}/{key}/report.html",
}
REPORT_JSON = "output/runs/{experiment}/{key}/report.json"
LOSS_PNG = "output/runs/{experiment}/{key}/loss.png"
PREFLIGHT = "output/preflight/{experiment}/{key}/preflight.json"
AB = "output/ab/{experiment}/{key}/ab.json"
SETTINGS = "output/settings/{owner}/{stage}.{digest}.json"
SWEEP = "output/sweeps/{sweep}/{digest}.html"
SWEEP_JSON = "output/sweeps/{sweep}/{digest}.json"


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


def ab(train: StageKey) -> str:
    """Path of what tuned kernels gain in the training of a run; no stage makes it."""
    return AB.format(experiment=train.owner, key=train.key)


def settings_file(stage: StageKey) -> str:
    """Path of the frozen settings that the stage reads."""
    return SETTINGS.format(owner=stage.owner, stage=stage.stage, digest=stage.digest)
