"""A plausible run on disk, with every artefact that a report reads; for tests of the report."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from primus.artifacts.gemm import ShapeRow, ShapesHeader, TunedHeader, TunedRow, save_lines
from primus.artifacts.manifest import Blake3Record, FileRecord
from primus.artifacts.preflight import (
    ClockReport,
    Disk,
    Finding,
    LinkReport,
    NodeReport,
    Preflight,
    RankReport,
)
from primus.artifacts.run import (
    Attempt,
    CheckpointManifest,
    CheckpointSummary,
    Environment,
    ExpertRow,
    MemoryRow,
    MetricsRow,
    RunIdentity,
    TrainManifest,
    TunedUse,
    ValidationRow,
)
from primus.artifacts.steps import (
    PLAIN_MALLOC,
    TUNED,
    TUNED_PLAIN,
    UNTUNED,
    Contestant,
    ProcessChoice,
    Steps,
)
from primus.artifacts.timing import times_path
from primus.artifacts.tokens import DataManifest, InputFile, SamplesManifest, TokenizerManifest
from primus.config.frozen import StageSettings
from primus.files import sha256_file, sha256_text
from primus.reports.inputs import Paths

START = 1_760_000_000.0
TOKENS_PER_ITERATION = 16 * 256
FLOPS_PER_TOKEN = 5.1e7
PEAK_PER_DEVICE = 0.148
GIB = 2**30
# Seconds: from the start of an attempt to its first iteration, for saves, between two attempts.
STARTING, SAVING, PAUSE = 10.0, 0.5, 25.0
LIBRARIES = {"torch": "2.13.0", "megatron-core": "0.16.1", "numpy": "2.4.6"}


@dataclass(kw_only=True)
class RunSpec:
    """What kind of run to write."""

    experiment: str = "llama3_8B_tiny"
    train_iters: int = 300
    log_interval: int = 5
    save_interval: int = 100
    restart: bool = True
    validation: bool = True
    tuning: bool = True
    improved: bool = True
    steps: Steps | None = None
    process: ProcessChoice | None = None
    export: bool = True
    experts: bool = False
    queued: bool = False
    preflight: Preflight | None = None
    train_samples: int = 9117
    seed: int = 7
    final_loss: float = 4.31
    unigram_entropy: float = 6.42
    values: dict[str, Any] = field(default_factory=dict)
    edit_rows: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = lambda rows: rows


def write_run(root: Path, spec: RunSpec | None = None) -> Paths:
    """Write all artefacts of a finished run under `root` and return where they lie."""
    spec = spec or RunSpec()
    key = sha256_text(spec.experiment)[:16]
    run = root / "runs" / spec.experiment / key
    tokenizer, data, samples = _write_data(root, spec)
    shapes, tuned = _write_tuning(root, spec) if spec.tuning else (None, None)
    if tuned is not None:
        (run).mkdir(parents=True, exist_ok=True)
        (run / "tuned.jsonl").write_bytes(tuned.read_bytes())
    train = _write_train(run, spec, key)
    return Paths(
        train=train,
        samples=samples,
        data=data,
        tokenizer=tokenizer,
        shapes=shapes,
        tuned=tuned,
        export=_write_export(run) if spec.export else None,
        stage_settings=_write_settings(root, spec, key),
    )


def _time(artefact: Path, stage: str, *seconds: float) -> None:
    lines = [
        {"host": "demo", "seconds": s, "stage": stage, "started": START, "succeeded": True}
        for s in seconds
    ]
    lines[0]["succeeded"] = len(seconds) == 1
    times_path(artefact).write_text("".join(json.dumps(line) + "\n" for line in lines))


def _write_data(root: Path, spec: RunSpec) -> tuple[Path, Path, Path]:
    data = root / "data" / "shakespeare"
    data.mkdir(parents=True)
    (data / "tokenizer.json").write_text('{"model": {"type": "BPE"}}\n')
    (data / "text.bin").write_bytes(bytes(4096))
    (data / "text.idx").write_bytes(bytes(512))
    paths = (data / "tokenizer.manifest.json", data / "manifest.json", data / "samples.json")
    TokenizerManifest(
        fingerprint=sha256_text("tokenizer"),
        vocab_size=4096,
        eod_id=0,
        files={"tokenizer.json": FileRecord.of(data / "tokenizer.json")},
        source="trained",
    ).save(paths[0])
    record = FileRecord.of(data / "text.bin")
    one = InputFile(file=record, documents=420, tokens=1_204_331, skipped_lines=0)
    DataManifest(
        dataset="shakespeare",
        path_prefix="text",
        dtype="uint16",
        documents=840,
        tokens=2_408_662,
        characters=9_874_213,
        skipped_lines=0,
        unigram_entropy=spec.unigram_entropy,
        tokenizer_fingerprint=sha256_text("tokenizer"),
        vocab_size=4096,
        eod_id=0,
        files={name: FileRecord.of(data / name) for name in ("text.bin", "text.idx")},
        inputs={"corpus/plays.txt.gz": one, "corpus/sonnets.jsonl": one},
        fingerprint=sha256_text("data"),
    ).save(paths[1])
    SamplesManifest(
        data_manifest="manifest.json",
        data_fingerprint=sha256_text("data"),
        path_to_cache="cache",
        seq_length=256,
        split="969,30,1",
        seed=1234,
        samples={"train": spec.train_samples, "valid": 282, "test": 9},
        files={},
        fingerprint=sha256_text("samples"),
    ).save(paths[2])
    for path, stage, seconds in zip(
        paths, ("tokenizer", "data", "samples"), (3.1, 7.4, 0.9), strict=True
    ):
        _time(path, stage, seconds)
    return paths


# text, calls, FLOPs, default and tuned microseconds, candidate, numerics, reason
PROBLEMS: list[tuple[str, int, int, float | None, float | None, str, str, str]] = [
    ("TN 4096x512x128 f32_r", 1, 536870912, 3921.4, 3312.8, "split_n", "exact", ""),
    ("NN 128x512x4096 f32_r", 1, 536870912, 3702.1, 3702.1, "default", "exact", "nothing faster"),
    ("NT 128x4096x512 f32_r", 1, 536870912, 3655.0, 3389.9, "swap", "exact", ""),
    ("TN 704x512x128 f32_r", 4, 92274688, 671.2, 671.2, "default", "exact", "gain 2.1 %"),
    ("NN 128x512x704 f32_r", 4, 92274688, 655.3, 560.7, "mkl_packed", "rounding", ""),
    ("NT 128x704x512 f32_r", 4, 92274688, 690.8, 690.8, "default", "exact", "nothing faster"),
    ("TN 192x512x128 f32_r", 4, 25165824, 201.7, 180.3, "swap", "exact", ""),
    ("NN 128x512x192 f32_r beta=1.0", 4, 25165824, None, None, "default", "exact", "not timed"),
]


def _write_tuning(root: Path, spec: RunSpec) -> tuple[Path, Path]:
    shapes, tuned = root / "gemm" / "shapes.jsonl", root / "gemm" / "tuned.jsonl"
    calls = sum(problem[1] for problem in PROBLEMS)
    flops = sum(problem[1] * problem[2] for problem in PROBLEMS)
    head = ShapesHeader(
        source="record", model={"num_layers": 4}, problems=len(PROBLEMS), calls=calls, flops=flops
    )
    common = [
        {"problem": {"text": p[0]}, "text": p[0], "calls": p[1], "flops": p[2], "phases": {}}
        for p in PROBLEMS
    ]
    save_lines(shapes, head, [ShapeRow.model_validate(line) for line in common])
    timed = [(p[1], p[3], p[4]) for p in PROBLEMS if p[3] is not None and p[4] is not None]
    header = TunedHeader(
        backend="cpu",
        stack={"device": "Xeon", "libraries": LIBRARIES},
        settings={"min_gain": 0.05},
        shapes_sha256=sha256_file(shapes),
        peak_tflops={"f32_r": PEAK_PER_DEVICE},
        coverage=0.97,
        problems=len(PROBLEMS),
        timed=len(timed),
        winners=4,
        failed=1,
        default_us=sum(n * before for n, before, _ in timed),
        tuned_us=sum(n * after for n, _, after in timed),
        stopped="complete",
        steps=spec.steps,
        process=spec.process,
    )
    rows = [
        TunedRow.model_validate(
            line
            | {"default_us": p[3], "tuned_us": p[4], "numerics": p[6]}
            | {"candidate": p[5] if spec.improved else "default"}
            | {"gain": 1 - p[4] / p[3] if p[3] and p[4] else 0.0, "reason": p[7], "others": {}}
        )
        for line, p in zip(common, PROBLEMS, strict=True)
    ]
    save_lines(tuned, header, rows)
    _time(shapes, "shapes", 6.2)
    _time(tuned, "tune", 12.0, 41.8)
    return shapes, tuned


def _loss_at(spec: RunSpec, iteration: int) -> float:
    start = math.log(4096)
    pace = 4.0 * iteration / spec.train_iters
    return spec.final_loss + (start - spec.final_loss) * math.exp(-pace)


def _rows(spec: RunSpec) -> list[dict[str, Any]]:
    """Rows of both attempts: the first dies at 60 %, the second resumes at the last checkpoint."""
    chance = random.Random(spec.seed)
    died = int(spec.train_iters * 0.6) // spec.log_interval * spec.log_interval
    base = died // spec.save_interval * spec.save_interval
    spans = [(1, 0, died), (2, base, spec.train_iters)] if spec.restart else []
    rows = []
    noise = {i: chance.gauss(0, 0.06) for i in range(spec.train_iters + 1)}
    clock = START + 90 - STARTING
    for attempt, first, last in spans or [(1, 0, spec.train_iters)]:
        clock += STARTING
        for iteration in range(first + spec.log_interval, last + 1, spec.log_interval):
            speed = 20_400 * (1 + chance.gauss(0, 0.03) - 0.25 * (chance.random() < 0.04))
            row = _train_row(spec, attempt, iteration, noise[iteration], speed)
            clock += row["seconds_per_iteration"] * spec.log_interval
            row["time"] = clock
            due = iteration % spec.save_interval == 0 or iteration == spec.train_iters
            if due or iteration == first + spec.log_interval:
                rows += _resources(spec, row, due)
            rows.append(row)
            if spec.validation and iteration % 50 == 0:
                rows.append(_valid_row(spec, row, noise[iteration]))
                clock += 0.5
        # Saves, the end, and what lies between two attempts.
        clock += SAVING + 2 + PAUSE
    return rows


def _resources(spec: RunSpec, row: dict[str, Any], due: bool) -> list[dict[str, Any]]:
    """Memory of both ranks, and the tokens of experts."""
    place = {name: row[name] for name in ("attempt", "iteration", "time")}
    peak = [int(GIB * (1.9 + 0.02 * row["attempt"])), int(GIB * 2.2)]
    rows = [MemoryRow(**place, peak_bytes=peak, device_bytes=[8 * GIB] * 2).model_dump()]
    if spec.experts and due:
        chance = random.Random(row["iteration"])
        tokens = [[chance.randrange(2000, 6000) for _ in range(8)] for _ in range(2)]
        rows.append(ExpertRow(**place, layers=[3, 4], tokens=tokens).model_dump())
    return rows


def _train_row(
    spec: RunSpec, attempt: int, iteration: int, noise: float, speed: float
) -> dict[str, Any]:
    warmup = min(1.0, iteration / (0.1 * spec.train_iters))
    decay = 0.5 * (1 + math.cos(math.pi * iteration / spec.train_iters))
    tflops = FLOPS_PER_TOKEN * speed / 1e12
    return MetricsRow(
        attempt=attempt,
        iteration=iteration,
        consumed_samples=iteration * 16,
        consumed_tokens=iteration * TOKENS_PER_ITERATION,
        time=0.0,
        loss=_loss_at(spec, iteration) + noise,
        lr=1e-3 * warmup * (0.1 + 0.9 * decay),
        grad_norm=0.8 + 2.4 * math.exp(-iteration / 40) + abs(noise),
        skipped_iterations=0,
        seconds_per_iteration=TOKENS_PER_ITERATION / speed,
        tokens_per_second=speed,
        tflops_per_second=tflops,
        peak_share=tflops / (2 * PEAK_PER_DEVICE) * 0.1,
        data_seconds=2e-4,
        expert_load=[1.2 + math.exp(-iteration / 50), 1.4] if spec.experts else [],
    ).model_dump()


def _valid_row(spec: RunSpec, row: dict[str, Any], noise: float) -> dict[str, Any]:
    return ValidationRow(
        attempt=row["attempt"],
        iteration=row["iteration"],
        time=row["time"] + 0.5,
        loss=_loss_at(spec, row["iteration"]) + 0.11 + noise / 4,
        batches=10,
        seconds=0.5,
    ).model_dump()


def _write_train(run: Path, spec: RunSpec, key: str) -> Path:
    fingerprints = {f"{n}_fingerprint": sha256_text(n) for n in ("samples", "data", "tokenizer")}
    tuned = sha256_file(run / "tuned.jsonl") if spec.tuning else None
    marks = {"samples_fingerprint": sha256_text("samples")}
    marks["tokenizer_fingerprint"] = sha256_text("tokenizer")
    settings = {"lr": 1e-3, "hidden_size": 128}
    RunIdentity(
        experiment=spec.experiment, key=key, settings=settings, tuned_sha256=tuned, **marks
    ).save(run / "run.json")
    rows = _rows(spec)
    metrics = run / "metrics.jsonl"
    edited = spec.edit_rows(rows)
    metrics.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in edited))
    last = [row for row in rows if row["type"] == "train"][-1]
    valid = [row["loss"] for row in rows if row["type"] == "valid"]
    attempts = _write_attempts(run, spec, rows)
    output = run / "train.json"
    TrainManifest(
        experiment=spec.experiment,
        key=key,
        iteration=last["iteration"],
        consumed_samples=last["consumed_samples"],
        consumed_tokens=last["consumed_tokens"],
        loss=last["loss"],
        validation_loss=valid[-1] if valid else None,
        parameters=1_576_320,
        flops_per_token=FLOPS_PER_TOKEN,
        seconds=64.0,
        tokens_per_second=20_300.0,
        peak_tflops_per_device=PEAK_PER_DEVICE * 10,
        attempts=attempts,
        tuned=_tuned_use() if spec.tuning else None,
        settings=settings,
        environment=_environment(),
        checkpoints=_write_checkpoints(run, spec, key, marks, tuned),
        **fingerprints,
    ).save(output)
    _time(output, "train", *((61.0, 38.5) if spec.restart else (80.0,)))
    return output


def whole_steps(factor: float, *, plain: float = 0.9, rounds: int = 6, seed: int = 3) -> Steps:
    """Steps under 2 % of noise.

    Args:
        factor: time with the tuned kernels over that with the default ones.
        plain: time under a plain malloc over that with the tuned kernels alone.
    """
    chance = random.Random(seed)

    def contestant(times: float, served: int, **environment: str) -> Contestant:
        runs = [[131e3 * times * chance.gauss(1, 0.02) for _ in range(rounds)] for _ in range(2)]
        kernels = "tuned" if served else "default"
        return Contestant(kernels=kernels, environment=environment, served=served, samples=runs)

    return Steps(
        clock="processor",
        threads=1,
        contestants={
            UNTUNED: contestant(1.0, 0),
            TUNED: contestant(factor, 51),
            TUNED_PLAIN: contestant(factor * plain, 51, GLIBC_TUNABLES=""),
        },
    )


CHOSEN = ProcessChoice(
    candidate=PLAIN_MALLOC,
    environment={"GLIBC_TUNABLES": ""},
    reason="faster by at least 6.1% in both runs",
)


def slow_node() -> Preflight:
    """Two nodes were checked, one of which is slow."""
    disk = Disk(free_gib=100.0, write_mb_s=1480.0, read_mb_s=2100.0)
    common: dict[str, Any] = {"cores": 8, "load": 0.1, "memory_available_gib": 6.0}
    common |= {"python": "3.11", "commit": "c", "directory": disk, "temporary": disk, "sees": True}
    hosts = ["node1", "node2"]
    return Preflight(
        experiment="llama3_8B_tiny",
        job="17",
        started=START,
        seconds=12.3,
        hosts=hosts,
        finished=True,
        nodes=[NodeReport(node=n, host=host, **common) for n, host in enumerate(hosts)],
        clocks=[ClockReport(node=1, low=-0.01, high=0.012)],
        ranks=[
            RankReport(rank=n, node=n, host=host, local_rank=0, stage="done", tflops=speed)
            for n, (host, speed) in enumerate(zip(hosts, (0.14, 0.11), strict=True))
        ],
        links=[LinkReport(nodes=[0, 1], round=1, gb_per_second=1.2)],
        findings=[
            Finding(
                node="node2",
                check="TFLOP/s",
                severity="slow",
                measured="0.11 TFLOP/s",
                needed="0.13",
                fix="look at its clocks",
            )
        ],
    )


def _tuned_use() -> TunedUse:
    rows = [
        {"problem": PROBLEMS[0][0], "calls": 2400, "use": "hit", "candidate": "split_n"},
        {"problem": PROBLEMS[1][0], "calls": 2400, "use": "default", "candidate": "default"},
        {"problem": PROBLEMS[2][0], "calls": 0, "use": "unused", "why": "never called"},
        {"problem": PROBLEMS[3][0], "calls": 960, "use": "hit", "nearest": 12},
        {
            "problem": "NN 64x64x64 f32_r batch=8",
            "calls": 77,
            "use": "miss",
            "why": "not in the tuned result",
        },
    ]
    return TunedUse(hits=24_000, defaults=21_600, misses=0, rejections=0, problems=rows)


def _environment() -> Environment:
    return Environment(
        host="demo",
        platform="Linux 6.1 x86_64",
        device="Intel Xeon, AVX512-BF16, 2 cores",
        devices=2,
        memory_gib=7.8,
        python="3.11.2",
        libraries=LIBRARIES,
        variables={"OMP_NUM_THREADS": "1"},
        code_commit="a923c4f" + 33 * "0",
        code_dirty=False,
    )


def _queue(started: float) -> dict[str, float]:
    """A job that waits for twenty seconds and takes two to start its ranks."""
    return {"submitted": started - 22, "job_started": started - 2}


def _write_attempts(run: Path, spec: RunSpec, rows: list[dict[str, Any]]) -> int:
    numbers = sorted({row["attempt"] for row in rows})
    base = 0
    for number in numbers:
        mine = [row for row in rows if row["attempt"] == number]
        last = max(row["iteration"] for row in mine)
        resumed = f"iter_{base:07d}" if number > 1 else None
        first = next(row for row in mine if row["type"] == "train")
        started = first["time"] - STARTING
        started -= first["seconds_per_iteration"] * spec.log_interval
        ended = number == numbers[-1]
        Attempt(
            number=number,
            status="completed" if ended else "failed",
            reason=f"reached train_iters {spec.train_iters}" if ended else "rank 1: signal 9",
            started=started,
            finished=max(row["time"] for row in mine) + SAVING + 2,
            first_iteration=base + 1,
            last_iteration=last,
            resumed_from=resumed,
            host="demo",
            pid=4711,
            world_size=2,
            save_seconds=SAVING,
            **_queue(started) if spec.queued else {},
        ).save(run / "attempts" / f"{number:03d}" / "attempt.json")
        if spec.preflight is not None:
            spec.preflight.save(run / "attempts" / f"{number:03d}" / "preflight.json")
        base = last // spec.save_interval * spec.save_interval
    return len(numbers)


def _write_checkpoints(
    run: Path, spec: RunSpec, key: str, marks: dict[str, str], tuned: str | None
) -> list[CheckpointSummary]:
    summaries = []
    parent = None
    for iteration in range(spec.save_interval, spec.train_iters + 1, spec.save_interval):
        name = f"iter_{iteration:07d}"
        directory = run / "checkpoints" / name
        directory.mkdir(parents=True)
        for rank in (0, 1):
            shard = directory / f"__{rank}_0.distcp"
            shard.write_bytes(random.Random(iteration + rank).randbytes(20_000))
        files = {path.name: Blake3Record.of(path) for path in sorted(directory.iterdir())}
        CheckpointManifest(
            iteration=iteration,
            consumed_samples=iteration * 16,
            key=key,
            parent=parent,
            attempt=1,
            created=START + iteration,
            world_size=2,
            layout={"data_parallel_size": 2, "tensor_model_parallel_size": 1},
            tuned_sha256=tuned,
            code_commit="a923c4f",
            code_dirty=False,
            libraries=LIBRARIES,
            files=files,
            **marks,
        ).save(directory / "manifest.json")
        summaries.append(
            CheckpointSummary(
                name=name,
                iteration=iteration,
                manifest_sha256=sha256_file(directory / "manifest.json"),
                bytes=40_000,
            )
        )
    return summaries


def _write_export(run: Path) -> Path:
    directory = run / "hf"
    directory.mkdir()
    (directory / "config.json").write_text("{}\n")
    (directory / "model.safetensors").write_bytes(bytes(5000))
    files = {p.name: FileRecord.of(p).model_dump() for p in sorted(directory.iterdir())}
    path = directory / "manifest.json"
    path.write_text(json.dumps({"kind": "export", "schema_version": 1, "files": files}))
    _time(path, "export", 4.4)
    return path


def _write_settings(root: Path, spec: RunSpec, key: str) -> tuple[Path, ...]:
    directory = root / "settings" / spec.experiment
    paths = []
    train = {"hidden_size": 128, "num_layers": 4, "lr": 1e-3, "lr_decay_style": "cosine"}
    train |= {"global_batch_size": 16, "micro_batch_size": 2, "weight_decay": 0.1, "seed": 1234}
    train |= {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1}
    train |= {"nodes": 1, "nproc_per_node": 2, "use_distributed_optimizer": True, "bf16": True}
    options = {"log_interval": spec.log_interval, "save_interval": spec.save_interval}
    extent = {"train_iters": spec.train_iters}
    common = {"experiment": spec.experiment, "upstream": {}}
    for settings in (
        StageSettings(
            stage="train",
            key=key,
            identity=train | spec.values,
            extent=extent,
            options=options,
            **common,
        ),
        StageSettings(
            stage="tune",
            key="b7f1",
            identity={"gemm_tuning": {"min_gain": 0.05, "replay": None}},
            extent={},
            options={"gemm_tuning": {"workers": 2}},
            **common,
        ),
        StageSettings(stage="report", key=key, identity={}, extent={}, options={}, **common),
    ):
        paths.append(directory / f"{settings.stage}.json")
        settings.save(paths[-1])
    return tuple(paths)


def arguments(paths: Paths, output: Path) -> list[str]:
    """The stage's command line for a run on disk."""
    *others, own = (str(path) for path in paths.stage_settings)
    words = ["--settings", own, "--output", str(output)]
    optional = ("shapes", "tuned", "export", "evaluation", "ab")
    for name in ("train", "samples", "data", "tokenizer", *optional):
        if (path := getattr(paths, name)) is not None:
            words += [f"--{name}", str(path)]
    return [*words, "--stage-settings", *others, own]
