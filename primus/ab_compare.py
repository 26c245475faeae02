"""From a tuned result and an experiment's training to what the one gains in the other."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from primus.ab_segments import Comparison, Found, run_segments
from primus.artifacts.ab import TOLERANCE, AbManifest, Numerics, worst_numerics
from primus.artifacts.provenance import code_version, libraries
from primus.config.frozen import StageSettings
from primus.config.layout import layout
from primus.files import sha256_file
from primus.gemm.backends.base import DEFAULT
from primus.gemm.tuned import TunedResult
from primus.trainer.supervise import fitting_tokenizer
from primus.tune_verify import activated_and_verified

NOTHING = "no tuned kernel differs from the default one: nothing to gain"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The files of the training, and how long to compare; as of `primus.ab_segments`."""

    samples: Path
    tokenizer: Path
    tuned: Path
    weights: Path | None
    rounds: int
    warm_up: int
    steps: int
    deadline: float
    over: str


def compare(settings: StageSettings, asked: Asked, directory: Path) -> AbManifest:
    """Compare; where no kernel differs, that is the result.

    Args:
        settings: of the train stage.
        directory: for files of the ranks; removed again where all went well.

    Raises:
        DataError: the tokenizer does not fit the model.
        UserError, ArtifactError: the tuned result cannot be used here.
        TrainingError: ranks failed, or there was no time for one round.
        PreemptedError: told to stop.
    """
    started = time.monotonic()
    fitting_tokenizer(asked.tokenizer, settings)
    result = TunedResult.load(asked.tuned)
    process = result.header.process
    winners = sum(row.candidate != DEFAULT for row in result.rows)
    numerics = worst_numerics(list(result.rows), DEFAULT)
    variables: dict[str, str] = {}
    found = Found(segments=[], device="", late=False)
    differs = winners > 0 or bool(process and process.environment)
    if differs:
        variables, found = _run(settings, asked, directory)
    one_thread = settings.threads_per_rank == 1 and settings.platform == "cpu"
    commit, dirty = code_version()
    done = len(found.segments) // 2
    return AbManifest(
        experiment=settings.experiment,
        key=settings.key,
        tuned_sha256=sha256_file(asked.tuned),
        backend=result.header.backend,
        winners=winners,
        environment=variables,
        numerics=numerics,
        tolerance=_tolerance(settings, numerics),
        clock="processor" if one_thread else "wall",
        device=found.device,
        ranks=settings.nodes * settings.nproc_per_node,
        nodes=settings.nodes,
        threads=settings.threads_per_rank,
        micro_batches=settings.global_batch_size
        // (settings.micro_batch_size * layout(settings).data),
        micro_batch_size=settings.micro_batch_size,
        seq_length=settings.seq_length,
        warm_up_steps=asked.warm_up,
        steps_per_segment=asked.steps,
        rounds=asked.rounds,
        segments=found.segments,
        reason="" if differs else NOTHING,
        stopped=f"{asked.over} after {done} of {asked.rounds} rounds" if found.late else "",
        libraries=libraries(),
        code_commit=commit,
        code_dirty=dirty,
        seconds=time.monotonic() - started,
    )


def _run(settings: StageSettings, asked: Asked, directory: Path) -> tuple[dict[str, str], Found]:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    # A library writes its own file beside it, and its verification is kept there.
    own = directory / "tuned.jsonl"
    shutil.copyfile(asked.tuned, own)
    variables = activated_and_verified(settings, own)
    comparison = Comparison(
        settings=settings,
        directory=directory,
        samples=asked.samples,
        tuned=own,
        variables=variables,
        weights=asked.weights,
        rounds=asked.rounds,
        warm_up=asked.warm_up,
        steps=asked.steps,
        deadline=asked.deadline,
        over=asked.over,
    )
    return variables, run_segments(comparison)


def _tolerance(settings: StageSettings, numerics: Numerics) -> float | None:
    rounding = TOLERANCE["16 bit" if settings.bf16 or settings.fp16 else "float32"]
    return {"exact": 0.0, "rounding": rounding, "lossy": None}[numerics]
