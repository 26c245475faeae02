"""Ranks really train with planted kernels and without, in turns; no run is touched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_run import REPOSITORY, Bench, settings_of

from primus.artifacts.ab import AbManifest
from primus.gemm.backends import load_backend
from primus.gemm.backends.base import BackendSpec
from primus.gemm.choose import Choice
from primus.gemm.problem import Problem
from primus.gemm.search import SearchResult, SearchSettings, Tuned
from primus.gemm.shapes import Shape
from primus.gemm.tuned import write_tuned

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]


def plant(path: Path, kernel: str, numerics: Any) -> None:
    """A result that computes the logits with this kernel, whatever it is."""
    settings = settings_of("train")
    tokens = settings.micro_batch_size * settings.seq_length
    weight = torch.empty(settings.vocab_size, settings.hidden_size)
    problem = Problem.from_mm(torch.empty(tokens, settings.hidden_size), weight.t())
    choice = Choice(kernel, 10.0, 8.0, 0.2, numerics, "for the test")
    result = SearchResult(
        stack=load_backend(BackendSpec(name="cpu", threads=1)).stack(),
        tuned=[Tuned(Shape(problem, 1, {"forward": 1}), choice)],
        peak_tflops={"f32_r": 0.1},
        coverage=1.0,
        measured_on={"here": 1},
        reused=0,
        failed=0,
        stopped="complete",
    )
    write_tuned(path, result, SearchSettings(), "0" * 64)


def compared(bench: Bench, path: Path, rounds: int, **changes: Any) -> tuple[AbManifest, str]:
    """What `python -m primus.ab` finds and says, with one step before and two in each segment."""
    settings, output = path / "train.json", path / "out/ab.json"
    settings_of("train", gemm_tuning={"enabled": True}, **changes).save(settings)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "primus.ab", "--settings", str(settings)),
            *("--samples", str(bench.samples), "--tokenizer", str(bench.tokenizer)),
            *("--tuned", str(path / "tuned.jsonl"), "--output", str(output)),
            *("--rounds", str(rounds), "--warm-up", "1", "--steps", "2"),
        ],
        env=os.environ
        | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"},
        cwd=path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(file.name for file in output.parent.iterdir()) == [
        "ab.json",
        "ab.json.times.jsonl",
    ]
    return AbManifest.load(output), done.stdout


def test_two_ranks_take_turns_with_a_planted_kernel_and_without(
    bench: Bench, tmp_path: Path
) -> None:
    plant(tmp_path / "tuned.jsonl", "split_k", "rounding")
    before = {path: path.stat().st_mtime_ns for path in bench.path.rglob("*")}
    made, said = compared(bench, tmp_path, 2, nproc_per_node=2, global_batch_size=8)
    sides = [(one.round, one.kernels) for one in made.segments]
    assert sides == [(0, "default"), (0, "tuned"), (1, "tuned"), (1, "default")]
    for one in made.segments:
        assert len(one.seconds) == 2
        assert min(one.seconds) > 0
        assert len(one.losses) == 3
        # Three iterations of two micro-batches on either rank, one planted product in each.
        assert one.served == (3 * 2 * 2 if one.kernels == "tuned" else 0)
    assert (made.ranks, made.micro_batches, made.clock) == (2, 2, "processor")
    # It learns, from the same weights and samples in every segment.
    assert made.losses.agree is True, made.losses
    assert made.losses.own == 0
    assert made.outcome == "too few rounds"
    assert "round 2 of 2: seconds per step: default " in said
    assert {path: path.stat().st_mtime_ns for path in bench.path.rglob("*")} == before


def test_a_kernel_that_is_not_what_it_is_called_is_noticed(bench: Bench, tmp_path: Path) -> None:
    """Operands in bfloat16, and the result says that nothing changes by it."""
    plant(tmp_path / "tuned.jsonl", "bf16_inputs", "exact")
    made, said = compared(bench, tmp_path, 1)
    assert made.losses.agree is False
    assert 1e-7 < made.losses.between < 0.1
    assert "warning: LOSSES DO NOT AGREE: losses differ by up to " in said
