"""Rows of the report's tables: how the ranks were laid out, what interrupted them, fingerprints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from primus.artifacts.run import Attempt
from primus.reports.budget import ended
from primus.reports.formats import number
from primus.reports.headline import microbatches
from primus.reports.inputs import Inputs

_PARALLEL = {
    "tensor_model_parallel_size": "Tensor parallel",
    "pipeline_model_parallel_size": "Pipeline parallel",
    "virtual_pipeline_model_parallel_size": "Interleaved pipeline stages per rank",
    "context_parallel_size": "Context parallel",
    "data_parallel_size": "Data parallel",
    "expert_model_parallel_size": "Expert parallel",
    "expert_tensor_parallel_size": "Expert tensor parallel",
}
# The others where they are more than 1.
_ALWAYS = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "data_parallel_size")


def layout(inputs: Inputs) -> list[tuple[str, str]]:
    """How the model and its batches were spread over the ranks, at the last checkpoint."""
    rows = []
    if inputs.attempts:
        rows.append(("Ranks", _ranks(inputs, inputs.attempts[-1].world_size)))
    manifest = next((c.manifest for c in reversed(inputs.checkpoints) if c.manifest), None)
    sizes = manifest.layout if manifest is not None else {}
    experts = inputs.setting("train", "num_experts")
    for name, label in _PARALLEL.items():
        told = sizes.get(name, 1) > 1 or name in _ALWAYS
        if name in sizes and told and (experts or not name.startswith("expert")):
            rows.append((label, number(sizes[name])))
    rows += [(label, value) for label, value in _settings(inputs) if value]
    return rows


def _ranks(inputs: Inputs, world: int) -> str:
    nodes, each = (inputs.setting("train", name) for name in ("nodes", "nproc_per_node"))
    if not nodes or not each or nodes * each != world:
        return number(world)
    return f"{world:,}: {nodes:,} {'node' if nodes == 1 else 'nodes'} of {each:,}"


def _settings(inputs: Inputs) -> Iterator[tuple[str, str]]:
    def value(name: str) -> object:
        return inputs.setting("train", name)

    sharded = "all, by FSDP2" if value("use_torch_fsdp2") else ""
    sharded = sharded or ("optimizer state" if value("use_distributed_optimizer") else "nothing")
    known = value("use_distributed_optimizer") is not None
    yield "Sharded over data-parallel ranks", sharded if known else ""
    yield "Sequence parallel", "yes" if value("sequence_parallel") else ""
    count = microbatches(inputs)
    batch, micro = value("global_batch_size"), value("micro_batch_size")
    if count is not None:
        yield "Batch", f"{batch} samples: {count} micro-batches of {micro} on each replica"
    yield "Recomputed", _recomputed(value("recompute_granularity"), value("recompute_modules"))
    kinds = [str(value(name)) if name == "fp8" else name for name in ("fp8", "bf16", "fp16")]
    flags = [value(name) for name in ("fp8", "bf16", "fp16")]
    chosen = [kind for kind, flag in zip(kinds, flags, strict=True) if flag]
    yield "Numbers", (" with ".join(chosen) or "fp32") if value("bf16") is not None else ""


def _recomputed(granularity: object, modules: object) -> str:
    if granularity != "selective":
        return "every layer" if granularity else "nothing"
    return ", ".join(map(str, modules)) if isinstance(modules, list) else "selective"


@dataclass(frozen=True, kw_only=True)
class Interruption:
    """The end of an attempt after which the run was not finished.

    Attributes:
        at: seconds since the epoch.
        after: the last iteration that was logged or saved.
        lost: iterations that were run again. lost_seconds: that the lost ones took, as logged.
        queue, between, restart: seconds to the first iteration of the next attempt: in SLURM's
            queue, otherwise without ranks, and in start-up.
    """

    attempt: Attempt
    at: float
    after: int
    lost: int
    lost_seconds: float
    queue: float
    between: float
    restart: float


def interruptions(inputs: Inputs) -> list[Interruption]:
    """All of them, oldest first."""
    curve, spent = inputs.curve, inputs.phases
    reached = {attempt.number: attempt.last_iteration for attempt in inputs.attempts}
    for row in (*curve.train, *curve.superseded):
        reached[row.attempt] = max(reached.get(row.attempt, 0), row.iteration)

    def seconds(number: int, kind: str) -> float:
        return sum(phase.seconds for phase in spent[number] if phase.kind == kind)

    return [
        Interruption(
            attempt=attempt,
            at=ended(attempt, curve),
            after=reached[attempt.number],
            lost=curve.lost.get(attempt.number, 0),
            lost_seconds=seconds(attempt.number, "lost"),
            queue=seconds(following.number, "queue"),
            between=seconds(following.number, "between"),
            restart=seconds(following.number, "start"),
        )
        for attempt, following in pairwise(inputs.attempts)
    ]


def fingerprints(inputs: Inputs) -> list[tuple[str, str, str]]:
    """What is identified, by what, and the hash."""
    train, export = inputs.train, inputs.paths.export
    exported = inputs.read[export].sha256 if export is not None else None
    rows: list[tuple[str, str, str | None]] = [
        ("Run", "settings of train and of all before it", train.key),
        ("Code", "git commit", train.environment.code_commit),
        ("Data", "token files and their order", train.data_fingerprint),
        ("Samples", "which tokens are a sample", train.samples_fingerprint),
        ("Tokenizer", "its files", train.tokenizer_fingerprint),
        ("Start weights", "the Hugging Face model", train.weights_fingerprint),
        ("Tuned GEMMs", "SHA-256 of tuned.jsonl", inputs.identity.tuned_sha256),
        ("Last checkpoint", "SHA-256 of its manifest", _last_checkpoint(inputs)),
        ("Export", "SHA-256 of its manifest", exported),
        ("Metrics", "SHA-256 of metrics.jsonl", inputs.read[inputs.run / "metrics.jsonl"].sha256),
    ]
    return [(what, by, value) for what, by, value in rows if value]


def _last_checkpoint(inputs: Inputs) -> str | None:
    listed = sorted(inputs.train.checkpoints, key=lambda summary: summary.iteration)
    return listed[-1].manifest_sha256 if listed else None
