"""What the dry run says of jobs and of turns of training, before a cluster is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from config_root import REPOSITORY

from primus.config.announce import Announcer, on_cluster
from primus.config.identity import stage_identity
from primus.config.pipeline import Pipeline, Plan
from primus.config.turns import turns

SLURM = {"time": 240, "warning_seconds": 600, "partition": "gpu", "gres": "gpu:h100"}


def planned(name: str, **changes: Any) -> Plan:
    return Pipeline({"slurm": SLURM} | changes, REPOSITORY).plan(name, "train")


def train(runs: Path, experiment: str, key: str, seconds: float, upto: int, **about: Any) -> None:
    run = runs / experiment / key
    (run / "attempts/001").mkdir(parents=True)
    (run / "attempts/001/about.json").write_text(json.dumps({"settings": about}))
    rows = [
        json.dumps({"type": "train", "iteration": number, "seconds_per_iteration": seconds})
        for number in range(1, upto + 1)
    ]
    valid = json.dumps({"type": "valid", "iteration": upto})
    (run / "metrics.jsonl").write_text("\n".join([*rows, valid, '{"type": "tra']))


def test_turns_are_estimated_from_the_plan(tmp_path: Path) -> None:
    said = turns(planned("llama3_8B", nodes=4, train_iters=20000).settings, tmp_path)
    # 20000 iterations of 4.59 s in turns of 14400 - 600 - 120 s.
    assert said.startswith("about 7 turns of 240 min, told to save 112 GB 600 s before each ends")
    assert "at 4.59 s per iteration, estimated from the plan" in said


def test_what_was_measured_is_better_than_an_estimate(tmp_path: Path) -> None:
    s = planned("llama3_8B", train_iters=20000).settings
    train(tmp_path, "llama3_8B", "other", 9.0, 3, nodes=s.nodes, hidden_size=1)
    assert "estimated from the plan" in turns(s, tmp_path), "another size"
    train(tmp_path, "llama3_8B", "earlier", 6.84, 3, nodes=s.nodes, hidden_size=s.hidden_size)
    said = turns(s, tmp_path)
    assert said.startswith("about 10 turns")
    assert "6.84 s per iteration, measured in earlier" in said
    train(tmp_path, "llama3_8B", "again", 5.0, 3, nodes=s.nodes, hidden_size=s.hidden_size)
    attempt = tmp_path / "llama3_8B/again/attempts/001/attempt.json"
    attempt.write_text(json.dumps({"started": 1e9}))
    (tmp_path / "llama3_8B/earlier").touch()
    assert "measured in again" in turns(s, tmp_path), "of it an attempt is known"


def test_what_is_done_is_not_counted(tmp_path: Path) -> None:
    s = planned("llama3_8B", train_iters=30).settings
    train(tmp_path, "llama3_8B", stage_identity(s, "train").key, 1368.0, 20)
    said = turns(s, tmp_path)
    assert said.startswith("about 1 turn of")
    assert "20 of 30 iterations are done" in said
    s = planned("llama3_8B", train_iters=20).settings
    assert turns(s, tmp_path) == "no turn is left: 20 of 20 iterations are done"


def test_what_cannot_be_known_is_said_to_be_unknown(tmp_path: Path) -> None:
    said = turns(planned("llama3_8B_tiny", hardware="cpu").settings, tmp_path)
    assert "how many is not known" in said


def test_a_turn_too_short_for_an_iteration_is_said(tmp_path: Path) -> None:
    s = planned("llama3_8B", slurm=SLURM | {"time": 11}).settings
    said = turns(s, tmp_path)
    assert said.startswith("no iteration fits into a turn of 11 min")
    assert "Fix: raise slurm.time" in said


def test_jobs_are_told_where_a_cluster_gets_them(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned("llama3_8B", nodes=4)
    Announcer(["-n", "train_llama3_8B"]).announce("train", plan)
    assert "turns" not in capsys.readouterr().err
    Announcer(["--profile", "slurm", "-n", "train_llama3_8B"]).announce("train", plan)
    said = capsys.readouterr().err.splitlines()
    assert "  train: 4 nodes, gpu:h100:8, 64 cores, all memory, 240 min, --partition=gpu" in said
    assert "  tokenizer, samples, export, report: 1 node, 1 cores, 16000 MiB, 240 min" in said[1]
    assert said[-1].startswith("  train: about ")


def test_what_a_comparison_asks_for_is_told_where_a_cluster_gets_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = planned("llama3_8B", nodes=4, gemm_tuning={"enabled": True})
    Announcer(["-n", "ab_llama3_8B"]).announce("ab", plan)
    assert capsys.readouterr().err == ""
    announcer = Announcer(["--profile", "slurm", "-n", "ab_llama3_8B"])
    announcer.announce("ab", plan)
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "  ab: 4 nodes, gpu:h100:8, 64 cores, all memory, 65 min, --partition=gpu"
    announcer.announce("train", plan)
    assert "  train: about " in capsys.readouterr().err, "it trains, too"


@pytest.mark.parametrize(
    ("words", "cluster"),
    [
        ("--profile slurm train_x", True),
        ("--profile=slurm train_x", True),
        ("-e kubernetes train_x", True),
        ("--executor=local train_x", False),
        ("--cores 2 train_x", False),
    ],
)
def test_who_gets_the_jobs(words: str, cluster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SNAKEMAKE_PROFILE", raising=False)
    assert on_cluster(words.split()) == cluster
