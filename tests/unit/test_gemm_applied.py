"""A tuned result on its way into training: environment, ranks together, verdicts, proof."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_gemm_dispatch import tuned

from primus import tune_verify
from primus.artifacts.gemm import TunedRow, load_tuned, save_lines
from primus.artifacts.run import TunedUse, TunedVerification
from primus.config.frozen import StageSettings
from primus.errors import ArtifactError, StackMismatchError, UserError
from primus.files import sha256_file
from primus.gemm.activate import activated
from primus.gemm.applied import (
    activate,
    merged,
    open_applied,
    verification_file,
    with_users,
)
from primus.gemm.problem import Problem
from primus.gemm.verify import failures, summary, table, verdicts

ONE, TWO, THREE = (Problem(m=64, n=64, k=size) for size in (64, 128, 192))


def row(problem: Problem, calls: int, use: str, candidate: str = "default", **more: Any) -> Any:
    return {"problem": str(problem), "calls": calls, "use": use, "candidate": candidate} | more


def use(*rows: dict[str, Any], **more: Any) -> TunedUse:
    sums = dict.fromkeys(("hits", "defaults", "misses", "rejections"), 0)
    names = {"hit": "hits", "default": "defaults", "miss": "misses", "rejection": "rejections"}
    for one in rows:
        if one["use"] in names:
            sums[names[one["use"]]] += one["calls"]
    return TunedUse(**sums, problems=list(rows), **more)


def test_ranks_are_added_problem_by_problem() -> None:
    first = use(row(ONE, 4, "hit", "swap"), row(TWO, 0, "unused", "swap", why="never called"))
    second = use(row(TWO, 3, "hit", "swap"), row(ONE, 2, "hit", "swap"), row(THREE, 1, "miss"))
    found = merged([first, second])
    assert (found.hits, found.misses) == (9, 1)
    assert {r["problem"]: (r["use"], r["calls"]) for r in found.problems} == {
        str(ONE): ("hit", 6),
        str(TWO): ("hit", 3),
        str(THREE): ("miss", 1),
    }
    assert not any("why" in r for r in found.problems)


def test_ranks_that_differ_are_told_apart() -> None:
    rejected = row(ONE, 2, "rejection", why="AlgoCheck refuses it")
    found = merged([use(row(ONE, 5, "hit", "a")), use(rejected)])
    (only,) = found.problems
    assert (only["use"], only["calls"]) == ("hit", 7)
    assert only["why"] == "2 calls: rejection, AlgoCheck refuses it"
    assert (found.hits, found.rejections) == (5, 2)


def test_what_a_verification_counted_stays_marked() -> None:
    empty = TunedUse(hits=0, defaults=0, misses=0, rejections=0, counted="verification")
    found = merged([use(row(ONE, 5, "hit", "a"), counted="verification"), empty])
    assert (found.counted, found.hits) == ("verification", 5)


def test_the_users_environment_wins_and_lists_are_joined() -> None:
    activation = {"LD_PRELOAD": "/ours.so", "A": "1", "B": "2", "C": "3"}
    wanted, said = with_users(activation, {"A": "9", "B": "2"}, {"LD_PRELOAD": "/theirs.so"})
    assert wanted == {"LD_PRELOAD": "/ours.so:/theirs.so", "B": "2", "C": "3"}
    assert said == ["env.A = 9 of the configuration stays; the tuned result asks for 1"]
    wanted, _ = with_users(activation, {"LD_PRELOAD": "/own.so"}, {"LD_PRELOAD": "/theirs.so"})
    assert wanted["LD_PRELOAD"] == "/ours.so:/own.so"


def rows_of(tmp_path: Path, choices: dict[Problem, str], **changes: Any) -> list[TunedRow]:
    tuned(tmp_path / "tuned.jsonl", choices)
    _, rows = load_tuned(tmp_path / "tuned.jsonl")
    return [one.model_copy(update=changes) for one in rows]


def test_every_tuned_problem_has_a_verdict(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, {ONE: "swap", TWO: "swap", THREE: "default"})
    found = verdicts(rows, use(row(ONE, 4, "hit", "swap"), row(THREE, 2, "default")))
    assert [(v.applied, v.why) for v in found] == [(True, ""), (False, "never called"), (None, "")]
    assert [v.problem for v in failures(found)] == [str(TWO)]
    lines = list(table(found))
    assert len(lines) == 4
    assert lines[1].split()[-4:] == ["4", "swap", "swap", "applied"]
    assert lines[2].endswith("NOT APPLIED: never called")


def test_sizes_of_experts_that_did_not_come_are_no_failure(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, {ONE: "swap"}, tokens="n")
    (found,) = verdicts(rows, use(row(ONE, 0, "unused", "swap", why="never called")))
    assert (found.applied, found.why) == (None, "experts received other numbers of tokens")


def test_the_summary_is_short_and_names_failures_first(tmp_path: Path) -> None:
    problems = [Problem(m=64, n=64, k=size) for size in range(1, 41)]
    rows = rows_of(tmp_path, dict.fromkeys(problems, "swap"))
    told = use(*(row(problem, 5, "hit", "swap") for problem in problems[1:]))
    head, *lines = summary(rows, told)
    assert head.startswith("tuned GEMMs: 195 calls took a tuned kernel")
    assert lines[0] == f"  {problems[0]}: swap, 0 calls, NOT APPLIED: never called"
    assert len(lines) == 21
    assert lines[-1] == "  and 20 further tuned problems, in train.json"


def test_a_cpu_result_multiplies_in_the_rank(tmp_path: Path) -> None:
    path = tmp_path / "tuned.jsonl"
    tuned(path, {Problem.from_mm(torch.empty(8, 8), torch.empty(8, 8)): "swap"})
    result, applied = open_applied(path, threads=1, rank=0)
    assert result.path == path
    applied.gemm.mm(torch.ones(8, 8), torch.ones(8, 8))
    assert applied.use().hits == 1
    assert activate(path, threads=1) == {}
    with pytest.raises(StackMismatchError, match="threads = 1 there, 2 here"):
        open_applied(path, threads=2, rank=0)


def test_a_replayed_result_needs_no_recording_to_be_applied(tmp_path: Path) -> None:
    path = tmp_path / "tuned.jsonl"
    tuned(path, {ONE: "swap"}, device="recorded")
    header, rows = load_tuned(path)
    save_lines(path, header.model_copy(update={"backend": "replay"}), rows)
    assert activate(path, threads=1) == {}
    assert open_applied(path, threads=1, rank=0)[1].gemm is not None


def test_what_the_library_counts_is_asked_in_each_rank(tmp_path: Path) -> None:
    path = tmp_path / "tuned.jsonl"
    tuned(path, {ONE: "algorithm"})
    header, rows = load_tuned(path)
    save_lines(path, header.model_copy(update={"backend": "cublaslt"}), rows)
    _, applied = open_applied(path, threads=1, rank=1)
    assert applied.gemm is None
    (told,) = applied.use().problems
    assert (told["problem"], told["use"]) == (str(ONE), "unused")
    assert "not preloaded" in told["why"]


def test_what_a_verification_found_is_the_first_ranks(tmp_path: Path) -> None:
    path = tmp_path / "tuned.jsonl"
    tuned(path, {ONE: "solution_1"})
    header, rows = load_tuned(path)
    save_lines(path, header.model_copy(update={"backend": "hipblaslt"}), rows)
    with pytest.raises(ArtifactError, match="cannot read the tuned-verification"):
        open_applied(path, threads=1, rank=0)
    TunedVerification(
        tuned_sha256=sha256_file(path),
        stack=header.stack,
        iterations=2,
        use=use(row(ONE, 2, "hit", "solution_1"), counted="verification"),
    ).save(verification_file(path))
    both = [open_applied(path, threads=1, rank=rank)[1].use() for rank in (0, 1)]
    assert [one.hits for one in both] == [2, 0]
    assert merged(both).counted == "verification"
    save_lines(path, header.model_copy(update={"backend": "hipblaslt", "failed": 1}), rows)
    with pytest.raises(ArtifactError, match=r"verifies another tuned\.jsonl"):
        open_applied(path, threads=1, rank=0)


@pytest.mark.parametrize(
    ("program", "kind"),
    [
        (
            "import sys; print('error: no GPU. Fix: x', file=sys.stderr); raise SystemExit(2)",
            UserError,
        ),
        ("import sys; print('error: torn', file=sys.stderr); raise SystemExit(1)", ArtifactError),
        ("raise RuntimeError('defect')", ArtifactError),
        ("print('a collision'); print('{\"A\": \"1\"}')", None),
    ],
)
def test_activation_is_done_by_a_process_that_ends(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    program: str,
    kind: type[Exception] | None,
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\n{program}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    if kind is None:
        assert activated(tmp_path / "t", threads=1) == {"A": "1"}
        assert capfd.readouterr().out == "a collision\n"
        return
    with pytest.raises(kind, match=r"^(no GPU\. Fix: x|torn|(?s:.*defect.*))$"):
        activated(tmp_path / "t", threads=1)


@pytest.mark.parametrize("same", [True, False])
def test_every_node_of_a_job_makes_itself_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    """A stand-in for srun that runs the command for three nodes."""
    srun = tmp_path / "srun"
    srun.write_text(
        '#!/bin/bash\nwhile [[ $1 == --* ]]; do echo "$1" >> "$TMP_ARGS"; shift; done\n'
        'for NODE in 1 2 3; do export NODE; "$@" || exit 1; done\n'
    )
    python = tmp_path / "python"
    value = "1" if same else "os.environ['NODE']"
    python.write_text(
        f"#!{sys.executable}\nimport json, os\nprint(json.dumps(dict(A=str({value}))))\n"
    )
    for program in (srun, python):
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("TMP_ARGS", str(tmp_path / "arguments"))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(sys, "executable", str(python))
    if same:
        assert activated(tmp_path / "t", threads=1, nodes=3) == {"A": "1"}
        assert "--ntasks-per-node=1" in (tmp_path / "arguments").read_text().splitlines()
        return
    with pytest.raises(ArtifactError, match="nodes of this job want different variables"):
        activated(tmp_path / "t", threads=1, nodes=3)


def test_the_command_prints_the_environment(tmp_path: Path, capsys: Any) -> None:
    from primus.gemm.activate import main

    tuned(tmp_path / "t", {ONE: "swap"})
    main([str(tmp_path / "t"), "1"])
    assert json.loads(capsys.readouterr().out) == {}


def settings_of_layout(**changes: Any) -> StageSettings:
    values = {
        "pipeline_model_parallel_size": 1,
        "tensor_model_parallel_size": 8,
        "context_parallel_size": 1,
        "expert_tensor_parallel_size": None,
        "expert_model_parallel_size": 1,
        "gemm_tuning": {"require": True},
    }
    return StageSettings.of("train", values | changes)


def test_a_verification_is_run_once_per_result_and_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tuned.jsonl"
    runs: list[tuple[dict[str, str], int]] = []

    def watched(_: object, __: object, variables: dict[str, str], *, nodes: int) -> TunedUse:
        runs.append((variables, nodes))
        return use(row(ONE, 2, "hit", "solution_1"), counted="verification")

    monkeypatch.setattr(tune_verify, "watched_use", watched)
    settings = settings_of_layout(pipeline_model_parallel_size=2, nproc_per_node=8)

    def verify(backend: str, **changes: Any) -> int:
        tuned(path, {ONE: "solution_1"})
        header, rows = load_tuned(path)
        save_lines(path, header.model_copy(update={"backend": backend, **changes}), rows)
        tune_verify.verify_once(settings, path, {"A": "1"})
        return len(runs)

    assert verify("cpu") == verify("cublaslt") == 0, "these count in the run itself"
    assert verify("hipblaslt") == 1
    assert verify("hipblaslt") == 1
    assert verify("hipblaslt", failed=3) == 2
    assert runs[0] == ({"A": "1"}, 2), "two nodes hold a copy of 16 ranks"
    assert open_applied(path, threads=1, rank=0)[1].use().hits == 2


@pytest.mark.parametrize(
    ("stage", "message"),
    [("tune", "settings of stage tune: they do not hold the model"), ("train", "other shapes")],
)
def test_verify_wants_settings_of_the_model_and_the_shapes_of_the_result(
    tmp_path: Path, stage: Any, message: str
) -> None:
    tuned(tmp_path / "tuned.jsonl", {ONE: "swap"})
    StageSettings.of(stage, {}).save(tmp_path / "settings.json")
    (tmp_path / "shapes.jsonl").write_text("")
    names = [tmp_path / name for name in ("shapes.jsonl", "tuned.jsonl")]
    with pytest.raises(UserError, match=message):
        tune_verify.verify(tmp_path / "settings.json", {}, *names)
