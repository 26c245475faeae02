"""Every file that a stage reads, damaged: it is read, or refused in this project's own words.

`PRIMUS_FUZZ=1000 pytest -k fuzz tests/unit` tries that many damages of each kind of file.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from damage import damaged, example, fuzz, manifest, refuses_or_reads
from gemm_replay import shape
from hypothesis import given
from pydantic import BaseModel
from report_run import RunSpec, write_run

import primus.artifacts.failure
import primus.gemm.applied
import primus.huggingface.write  # noqa: F401 - for the kinds of manifests that they define
from primus import status
from primus.artifacts import gemm
from primus.artifacts.manifest import Manifest
from primus.artifacts.run import CheckpointManifest, read_attempts
from primus.config import start_model
from primus.config.frozen import StageSettings
from primus.config.load import load
from primus.dataset import tokenizer
from primus.gemm import archive, stored
from primus.gemm.backends import replay
from primus.gemm.cublaslt import algo_file, dump
from primus.gemm.hipblaslt import results_file
from primus.gemm.measure import CandidateTimes
from primus.gemm.shapes import read_shapes
from primus.gemm.stack import Stack
from primus.gemm.store import StackFile, Times
from primus.gemm.tuned import TunedResult
from primus.huggingface.compare import check_model
from primus.huggingface.directory import ModelDirectory
from primus.reports.headline import compute_headline
from primus.reports.inputs import Paths, read_inputs
from primus.reports.integrity import judge
from primus.run_status import statuses
from primus.slurm.job import Job
from primus.trainer import checkpoint_directory, lease, outcome

Read = Callable[[Path], object]
ROOT = Path(__file__).parents[2]
# `kind` says which; all that this project defines.
MANIFESTS = [kind for kind in Manifest.__subclasses__() if kind.__module__.startswith("primus.")]


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", MANIFESTS, ids=lambda kind: kind.__name__)
def test_fuzz_manifests(kind: type[Manifest], tmp_path: Path) -> None:
    path = write(tmp_path / "manifest.json", manifest(kind))
    kind.load(path)

    @fuzz
    @given(damaged([manifest(kind), manifest(CheckpointManifest)]))
    def check(content: bytes) -> None:
        refuses_or_reads(lambda: kind.load(write(path, content)))

    check()


def lease_file(directory: Path) -> Path:
    return directory / "writer.000003.json"


def lines_of(header: BaseModel, *rows: BaseModel) -> bytes:
    """A header and rows as shapes.jsonl and tuned.jsonl hold them."""
    return b"".join(line.model_dump_json().encode() + b"\n" for line in (header, *rows))


PROBLEM = shape(0).problem
ROW = {"problem": PROBLEM.to_json(), "text": str(PROBLEM), "calls": 2, "flops": 8, "phases": {}}
SHAPES = lines_of(
    gemm.ShapesHeader(source="trace", model={}, problems=1, calls=2, flops=16),
    gemm.ShapeRow.model_validate(ROW),
)
STACK = Stack(backend="cpu", device="A", threads=1, libraries={"torch": "1"})
TUNED = lines_of(
    gemm.TunedHeader.model_validate(
        example(gemm.TunedHeader) | {"problems": 1, "steps": None, "stack": STACK.to_json()}
    ),
    gemm.TunedRow.model_validate(example(gemm.TunedRow) | ROW | {"default_us": 2.0}),
)
OWNER = b'{"host": "elsewhere", "pid": 12, "started": 3.5, "job": "7", "released": true}'
RESULTS = (
    b"Git Version: de5c1aebb6\n    transA,transB,m,n,k,us,solution_index,gcnArchName,CUs\n"
    b"    T,N,32,64,128,39.8689,303082,gfx950:sramecc+:xnack-,256\n"
)
ALGORITHMS = (
    b"primus-cublaslt 1\ncublaslt 130102\ndevice NVIDIA H200\nmultiprocessors 132\n"
    b"capability 9.0\nproblems 1\nalgo_21 tokens=n TN 32 64 16 ;\n"
)
DUMP = b"primus-cublaslt-dump 1\n3 algo_21 alpha=1 beta=0 TN 32 64 16 ;\nend\n"
JOBSCRIPT = (
    b'#!/bin/sh\n# properties = {"type": "single", "rule": "train", "jobid": 3, "threads": 2, '
    b'"wildcards": {"experiment": "x"}, "output": ["a"], "input": ["b"], "resources": '
    b'{"sbatch": "--signal=USR1@300 --account=me", "mem_mb": 100, "runtime": 5}}\ntrue\n'
)
CONFIG_JSON = (
    b'{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, '
    b'"num_hidden_layers": 2, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}, '
    b'"rope_parameters": {"rope_theta": 1e4}, "quantization_config": {"quant_method": "fp8", '
    b'"weight_block_size": [128, 128]}, "tie_word_embeddings": false}'
)
INDEX_JSON = b'{"metadata": {}, "weight_map": {"a.weight": "model.safetensors"}}'
HEADER = b'{"a.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}'
SAFETENSORS = struct.pack("<Q", len(HEADER)) + HEADER + bytes(16)


def read_lease(path: Path) -> object:
    directory = path.parent
    lease_path = lease_file(directory)
    lease.check_free(directory)
    return lease.writer_of(lease_path.parent)


def read_model(path: Path) -> object:
    """All that is read of a Hugging Face model before its numbers."""
    directory = ModelDirectory(path.parent)
    settings = load("llama3_8B_tiny", root=ROOT, stages=()).settings
    return check_model(directory, settings)


def read_start(path: Path) -> object:
    settings = load("llama3_8B_tiny", root=ROOT, stages=()).settings
    found = settings.model_copy(update={"load_hf": str(path.parent)})
    return list(start_model.mistakes(found, Path("/")))


def read_checkpoints(path: Path) -> object:
    """What a start, the status and the pruning read of a checkpoint's directory."""
    root = path.parent.parent
    return list(checkpoint_directory.summarise(root, "text"))


def read_about(path: Path) -> object:
    """`python -m primus.status`."""
    return status.table(statuses([], []))


def read_archive(path: Path) -> object:
    return archive.import_store(path, path.parent / "store")


def packed(content: bytes, name: str) -> bytes:
    """A gzipped tar of one member."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return raw.getvalue()


def in_store(name: str) -> Read:
    """Read a file as one of a store, by the name that it would have there."""
    return lambda path: stored.parse_stored(f"{STACK_KEY}/{name}", path.read_bytes())


HEAD = StackFile(stack=STACK.to_json(), measurement=1)
STACK_KEY = HEAD.key
SAMPLES = CandidateTimes(screen=[1.0], runs=[[1.0, 2.0]], numerics="exact")
TIMES = Times(problem=PROBLEM.to_json(), candidates=(("default", SAMPLES), ("fast", SAMPLES)))


def stored_text(kept: Manifest) -> bytes:
    head = {"kind": kept.kind, "schema_version": kept.schema_version}
    return json.dumps(head | kept.model_dump(mode="json")).encode()


FILES: dict[str, tuple[str, list[bytes], Read]] = {
    "frozen settings": (
        "train.json",
        [
            b'{"kind": "settings", "schema_version": 1, "stage": "train", "experiment": "x", '
            b'"key": "0123456789ab", "identity": {"lr": 1.0}, "extent": {"train_iters": 3}, '
            b'"options": {"env": {"A": "b"}}, "upstream": {"samples": "0123456789ab"}}'
        ],
        lambda path: StageSettings.load(path, "train", {"log_interval": 5, "env": {}}),
    ),
    "lease": ("writer.000003.json", [OWNER, OWNER.replace(b"true", b"false")], read_lease),
    "checkpoint": (
        "checkpoints/iter_0000003/manifest.json",
        [manifest(CheckpointManifest)],
        read_checkpoints,
    ),
    "hipBLASLt results": (results_file.FILE_NAME, [RESULTS], results_file.load_results),
    "cuBLASLt algorithms": (algo_file.FILE_NAME, [ALGORITHMS], algo_file.read_algorithms),
    "cuBLASLt dump": ("cublaslt-1.calls", [DUMP], lambda path: dump.read(path.parent)),
    "job script": ("job.sh", [JOBSCRIPT], lambda p: Job.read(p).options(Path("log"))),
    "config.json": ("config.json", [CONFIG_JSON], read_model),
    "config.json in the dry run": ("config.json", [CONFIG_JSON], read_start),
    "index": (
        "model.safetensors.index.json",
        [INDEX_JSON],
        lambda p: ModelDirectory(p.parent).files,
    ),
    "safetensors": ("model.safetensors", [SAFETENSORS], lambda p: ModelDirectory(p.parent).tensors),
    "tokenizer.json": (
        "tokenizer.json",
        [b'{"model": {"vocab": {"a": 0}}}'],
        tokenizer.fingerprint,
    ),
    "times": (
        f"{PROBLEM.key}.json",
        [stored_text(TIMES)],
        in_store(f"{PROBLEM.key}.json"),
    ),
    "stack": ("stack.json", [stored_text(HEAD)], in_store("stack.json")),
    "archive": (
        "store.tar.gz",
        [packed(stored_text(HEAD), f"{STACK_KEY}/stack.json"), gzip.compress(b"no tar")],
        read_archive,
    ),
    "unpacked archive": (
        "store.tar.gz",
        [gzip.decompress(packed(stored_text(HEAD), f"{STACK_KEY}/stack.json"))],
        lambda path: read_archive(write(path, gzip.compress(path.read_bytes(), 1))),
    ),
    "tuned": ("tuned.jsonl", [TUNED], lambda p: TunedResult.load(p)),
    "shapes": ("shapes.jsonl", [SHAPES], read_shapes),
    "recording": (
        "replay.json",
        [
            b'{"kind": "gemm-replay", "peak_tflops": {"f32_r": 0.1}, "problems": [{"problem": '
            b'{"m": 64, "n": 64, "k": 64, "transA": "N", "transB": "N", "a_type": "f32_r"}, '
            b'"candidates": {"default": {"us": 3.0}}}]}'
        ],
        replay.load_recording,
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_fuzz_files(name: str, tmp_path: Path) -> None:
    file, examples, read = FILES[name]
    path = tmp_path / file
    beside = {"index": "config.json"}.get(name)
    if name == "config.json in the dry run" or beside:
        write(tmp_path / "model.safetensors", SAFETENSORS)

    @fuzz
    @given(damaged(examples))
    def check(content: bytes) -> None:
        refuses_or_reads(lambda: read(write(path, content)))

    check()


# Of a run and its inputs: what only a report, the status or a second start reads together.
RUN_FILES = [
    "train.json",
    "run.json",
    "metrics.jsonl",
    "attempt.json",
    "shapes.jsonl",
    "tuned.jsonl",
]


def read_run(paths: Paths) -> None:
    """What a report is made of, without its figures, and what a further start reads."""
    inputs = read_inputs(paths)
    judge(inputs, compute_headline(inputs), 0.0)
    read_attempts(paths.train.parent)
    outcome.read_metrics(paths.train.parent)
    statuses([], [])


@pytest.mark.parametrize("name", RUN_FILES)
def test_fuzz_a_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = write_run(tmp_path, RunSpec(train_iters=20, save_interval=10))
    path = paths.train if name == "train.json" else next(tmp_path.rglob(name))
    whole = path.read_bytes()
    read_run(paths)

    @fuzz
    @given(damaged([whole]))
    def check(content: bytes) -> None:
        refuses_or_reads(lambda: read_run(paths) if write(path, content) else None)

    check()
