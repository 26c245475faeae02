"""Our record of GEMMs against the logs of the libraries that computed them, on the CPU.

Every difference is explained by one of the rules below; there is no tolerance.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_run import REPOSITORY, settings_of

from primus.config.frozen import StageSettings
from primus.config.identity import identities
from primus.config.load import load
from primus.gemm.formats.mkl_verbose import Batch, parse_mkl
from primus.gemm.formats.onednn_verbose import parse_onednn
from primus.gemm.formats.stream import read_dump
from primus.gemm.problem import Problem
from primus.gemm.shapes import read_shapes

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not torch.backends.mkl.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        reason="torch computes with other libraries here",
    ),
]

ITERATIONS = 2
# torch computes smaller products of bf16 itself.
LEAST_OF_ONEDNN = 16**3


def as_mkl_logs(problem: Problem) -> Problem | Batch:
    """What MKL_VERBOSE shows of a call.

    alpha and beta are addresses. torch copies C, or the bias, into D before the call, so that C
    has D's layout. Of a batched call only the transpositions are no addresses.
    """
    if problem.batch_count > 1:
        return Batch(problem.transA, problem.transB, problem.a_type)
    layout = {"ldc": problem.ldd}
    return replace(problem, alpha=1.0, beta=0.0, bias_vector=False, bias_type="", **layout)


def as_onednn_logs(problem: Problem) -> Problem | None:
    """What ONEDNN_VERBOSE shows of a call; None where torch does not ask oneDNN.

    alpha is read later. torch copies C, or the bias, into D and has the product added to it. The
    operands of a batched product are copied to packed ones.
    """
    if problem.m * problem.n * problem.k <= LEAST_OF_ONEDNN:
        return None
    shown = replace(
        problem,
        alpha=1.0,
        beta=1.0 if problem.bias_vector else problem.beta,
        ldc=problem.ldd,
        bias_vector=False,
        bias_type="",
    )
    if problem.batch_count == 1:
        return shown
    return replace(
        shown,
        lda=0,
        ldb=0,
        stride_a=problem.m * problem.k,
        stride_b=problem.k * problem.n,
    )


def fused_attention(heads: int, length: int, width: int) -> Counter[tuple[str, int, int, int]]:
    """The products inside SDPA that no dispatcher sees; one block holds all keys.

    Forward: scores, then output. Backward: the scores again, the gradients of V and of the
    probabilities, then those of Q and of K. Queries come in blocks of torch's choice.
    """
    queries = 32 if length < 192 else 64
    assert length % queries == 0
    assert length <= 512
    scores, output = ("TN", length, queries, width), ("NN", width, queries, length)
    of_v = of_k = ("NT", width, length, queries)
    calls = Counter([scores, output, scores, of_v, scores, output, of_k])
    return Counter({call: heads * (length // queries) * n for call, n in calls.items()})


def shapes_settings(experiment: str, type_name: str) -> StageSettings:
    """What the shapes stage reads; of the small llama, or of a tiny model as it is."""
    changes: dict[str, Any] = {
        "bf16": type_name == "bf16_r",
        "gemm_tuning": {"enabled": True, "shapes": "record", "record_iters": ITERATIONS},
    }
    if experiment == "small":
        return settings_of("shapes", **changes)
    changes |= {"hardware": "cpu", "nproc_per_node": 1}
    resolved = load(experiment, changes, root=REPOSITORY, stages=())
    return StageSettings.of_key(identities(resolved.settings)["shapes"], experiment)


# Every process begins with it: attention is torch's own kernel, whose products are known.
WHOLE_ATTENTION = """
from primus.trainer import attention_blocks

attention_blocks.serves = lambda *_: False
"""


def run(arguments: list[str], log: Path) -> None:
    """Run a module with both libraries' logs on its standard output, which `log` keeps."""
    (log.parent / "sitecustomize.py").write_text(WHOLE_ATTENTION)
    places = (log.parent, REPOSITORY, REPOSITORY / "tests/pipeline")
    with log.open("w") as output:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=REPOSITORY,
            env=os.environ
            | {"MKL_VERBOSE": "1", "ONEDNN_VERBOSE": "1", "OMP_NUM_THREADS": "1"}
            | {"PYTHONPATH": ":".join(map(str, places))},
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 0, done.stderr


def logged(log: Path) -> Counter[Problem | Batch]:
    """The calls of both libraries; nothing of their lines is malformed."""

    def parse(line: str) -> Problem | Batch | None:
        if line.startswith("MKL_VERBOSE"):
            return parse_mkl(line)
        return parse_onednn(line) if line.startswith("onednn_verbose") else None

    dump = read_dump([log], parse, max_skipped=0.0)
    assert dump.skipped == 0, dump.examples
    return dump.calls


def expected(calls: dict[Problem, int], type_name: str) -> Counter[Problem | Batch]:
    """What the libraries should have logged for the calls of a record."""
    found: Counter[Problem | Batch] = Counter()
    for problem, number in calls.items():
        assert problem.a_type == type_name
        shown = as_mkl_logs(problem) if type_name == "f32_r" else as_onednn_logs(problem)
        if shown is not None:
            found[shown] += number
    return found


@pytest.mark.parametrize(
    ("experiment", "type_name", "width"),
    [
        ("small", "f32_r", 16),
        ("small", "bf16_r", 16),
        # Latent attention, in which V is padded to the width of Q and K, and experts.
        ("deepseek_v2_lite_tiny", "f32_r", 32 + 16),
    ],
)
def test_the_record_of_training_steps_is_what_the_libraries_logged(
    tmp_path: Path, experiment: str, type_name: str, width: int
) -> None:
    settings = shapes_settings(experiment, type_name)
    settings.save(tmp_path / "settings.json")
    output, log = tmp_path / "shapes.jsonl", tmp_path / "log"
    run(
        [
            *("primus.shapes", "--settings", str(tmp_path / "settings.json")),
            *("--output", str(output)),
        ],
        log,
    )
    recorded = {s.problem: s.calls * ITERATIONS for s in read_shapes(output)[1]}
    assert sum(recorded.values()) >= 27 * ITERATIONS
    attention = fused_attention(
        heads=ITERATIONS
        * settings.num_layers
        * settings.micro_batch_size
        * settings.num_attention_heads,
        length=settings.seq_length,
        width=width,
    )
    hidden = {(m, n, k) for _, m, n, k in attention}
    assert not hidden & {(p.m, p.n, p.k) for p in recorded}, "one would pass for the other"
    seen = logged(log)
    inside: Counter[Any] = Counter()
    for call in list(seen):
        if isinstance(call, Problem) and (call.m, call.n, call.k) in hidden:
            inside[call.transA + call.transB, call.m, call.n, call.k] += seen.pop(call)
    assert inside == attention
    assert seen == expected(recorded, type_name)


@pytest.mark.parametrize(("dtype", "type_name"), [("float32", "f32_r"), ("bfloat16", "bf16_r")])
def test_the_record_of_every_layout_is_what_the_library_logged(
    tmp_path: Path, dtype: str, type_name: str
) -> None:
    record, log = tmp_path / "record.json", tmp_path / "log"
    run(["verbose_calls", dtype, str(record)], log)
    recorded = {Problem.from_json(plain): calls for plain, calls in json.loads(record.read_text())}
    assert sum(recorded.values()) == 25
    assert logged(log) == expected(recorded, type_name)
