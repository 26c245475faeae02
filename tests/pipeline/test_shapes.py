"""GEMM shapes: the recorded list equals the traced one, and tuned kernels meet every call."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trainer_run import REPOSITORY, Bench, settings_of

from primus.artifacts.gemm import load_tuned, save_lines
from primus.files import sha256_file
from primus.gemm.backends import load_backend
from primus.gemm.backends.base import DEFAULT, BackendSpec
from primus.gemm.choose import Choice
from primus.gemm.kernels import KERNELS, dispatchable
from primus.gemm.problem import Problem
from primus.gemm.search import SearchResult, SearchSettings, Tuned
from primus.gemm.shapes import Shape, read_shapes
from primus.gemm.stack import Stack
from primus.gemm.tokens import expand
from primus.gemm.tuned import write_tuned
from primus.launch import Ranks, run_ranks, thread_environment

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(600)]


def dump(path: Path, source: str, **changes: Any) -> list[Shape]:
    """Run the stage."""
    settings = settings_of(
        "shapes", **changes, gemm_tuning={"enabled": True, "shapes": source, "record_iters": 1}
    )
    settings.save(path / "settings.json")
    output = path / f"{source}.jsonl"
    result = subprocess.run(
        [
            *(sys.executable, "-m", "primus.shapes"),
            *("--settings", str(path / "settings.json"), "--output", str(output)),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    header, shapes = read_shapes(output)
    assert header.source == source
    assert header.calls == sum(shape.calls for shape in shapes)
    return shapes


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="fp32"),
        pytest.param({"bf16": True}, id="bf16"),
        pytest.param(
            {"bf16": True, "use_torch_fsdp2": True, "use_distributed_optimizer": False}, id="fsdp2"
        ),
        pytest.param({"nproc_per_node": 2, "tensor_model_parallel_size": 2}, id="two tensor ranks"),
    ],
)
def test_record_and_trace_agree(tmp_path: Path, changes: dict[str, Any]) -> None:
    recorded = dump(tmp_path, "record", **changes)
    traced = dump(tmp_path, "trace", **changes)
    assert recorded == traced
    # The dumps are of 2 layers of 4 linear layers and the logits, three products each.
    assert sum(shape.calls for shape in recorded if shape.problem.batch_count == 1) == 27


ONE_RANK: dict[str, Any] = {}
TWO_RANKS: dict[str, Any] = {
    "nproc_per_node": 2,
    "tensor_model_parallel_size": 2,
    "sequence_parallel": True,
    "expert_model_parallel_size": 2,
    "expert_tensor_parallel_size": 1,
}


@pytest.mark.parametrize("layout", [ONE_RANK, TWO_RANKS], ids=["one rank", "TP2 and EP2"])
def test_record_and_trace_agree_for_every_tiny_model(
    tmp_path: Path, layout: dict[str, Any]
) -> None:
    output = tmp_path / "found.json"
    ranks = Ranks(
        module="shapes_of_models",
        arguments=[json.dumps(layout), str(output)],
        nproc_per_node=layout.get("nproc_per_node", 1),
        nodes=1,
        environment=thread_environment(1)
        | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests/pipeline'}"},
        log_directory=tmp_path / "logs",
    )
    assert run_ranks(ranks) == 0
    found = json.loads(output.read_text())
    tinies = {path.stem for path in (REPOSITORY / "configs").glob("*_tiny.yaml")}
    assert set(found) == tinies
    for name, one in found.items():
        assert one["different"] == [], name
        assert not one["varying_differs"], name
        # GEMMs of experts are known by the number of tokens that varies.
        assert (one["varying"] > 0) is name.startswith(("deepseek", "mixtral")), name
        # Three products each of the logits and of the linear layers of the first layer at least.
        assert one["calls"] > 15


def test_the_full_size_model_has_the_sizes_of_its_layers(tmp_path: Path) -> None:
    """Against the formula: (out, in) with T tokens is fprop TN (out, T, in), dgrad NN (in, T, out)
    and wgrad NT (in, out, T), in BLAS terms."""
    result = subprocess.run(
        [
            *(sys.executable, "-m", "primus.config", "freeze", "llama3_8B", "--stage", "shapes"),
            *("--output", str(tmp_path / settings_name("llama3_8B"))),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    settings = json.loads((tmp_path / settings_name("llama3_8B")).read_text())["identity"]
    result = subprocess.run(
        [
            *(sys.executable, "-m", "primus.shapes", "--output", str(tmp_path / "shapes.jsonl")),
            *("--settings", str(tmp_path / settings_name("llama3_8B"))),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    _, shapes = read_shapes(tmp_path / "shapes.jsonl")
    found = {
        (p.transA + p.transB, p.m, p.n, p.k): shape.calls
        for shape in shapes
        if (p := shape.problem).batch_count == 1
    }
    assert found == formula(settings)


def settings_name(experiment: str) -> str:
    """The name under which the configuration lets itself be frozen."""
    from primus.config.identity import identities
    from primus.config.load import load
    from primus.config.paths import settings_file

    resolved = load(experiment, {}, root=REPOSITORY, stages=())
    return Path(settings_file(identities(resolved.settings)["shapes"])).name


def formula(settings: dict[str, Any]) -> dict[tuple[str, int, int, int], int]:
    hidden, ffn = settings["hidden_size"], settings["ffn_hidden_size"]
    head, parts = settings["kv_channels"], settings["tensor_model_parallel_size"]
    heads, groups = settings["num_attention_heads"], settings["num_query_groups"]
    layers, tokens = settings["num_layers"], settings["micro_batch_size"] * settings["seq_length"]
    assert (hidden, ffn, heads, groups, layers) == (4096, 14336, 32, 8, 32)
    linears = [
        (layers, (heads + 2 * groups) * head // parts, hidden),
        (layers, hidden, heads * head // parts),
        (layers, 2 * ffn // parts, hidden),
        (layers, hidden, ffn // parts),
        (1, settings["vocab_size"] // parts, hidden),
    ]
    calls: dict[tuple[str, int, int, int], int] = {}
    for count, out, into in linears:
        for problem in (
            ("TN", out, tokens, into),
            ("NN", into, tokens, out),
            ("NT", into, out, tokens),
        ):
            calls[problem] = calls.get(problem, 0) + count
    return calls


def write_winners(
    path: Path, shapes: list[Shape], stack: Stack, shapes_sha256: str = "0" * 64
) -> int:
    """A result in which every problem that can have it takes another kernel; their calls."""

    def choice(problem: Problem) -> Choice:
        if dispatchable(problem) is not None:
            return Choice(DEFAULT, 10.0, 10.0, 0.0, "exact", "not dispatched")
        name = "swap" if KERNELS["swap"].legal(problem) else "relayout_a"
        return Choice(name, 10.0, 8.0, 0.2, "rounding", "for the test")

    tuned = [Tuned(shape, choice(shape.problem)) for shape in shapes]
    result = SearchResult(
        stack=stack,
        tuned=tuned,
        peak_tflops={"bf16_r": 0.1},
        coverage=1.0,
        measured_on={"here": len(tuned)},
        reused=0,
        failed=0,
        stopped="complete",
    )
    write_tuned(path, result, SearchSettings(), shapes_sha256)
    return sum(t.shape.calls for t in tuned if t.choice.candidate != DEFAULT)


def test_training_in_bfloat16_with_tuned_kernels(bench: Bench, tmp_path: Path) -> None:
    shapes = dump(tmp_path, "trace", bf16=True)
    stack = load_backend(BackendSpec(name="cpu", threads=1)).stack()
    tuned = tmp_path / "tuned.jsonl"
    per_micro_batch = write_winners(tuned, shapes, stack)
    assert per_micro_batch == 27
    changes = {"bf16": True, "gemm_tuning": {"enabled": True}, "train_iters": 20}
    run = bench.run("tuned", tuned=tuned, **changes, eval_iters=0)
    run.finish()
    use = run.manifest().tuned
    assert use is not None
    assert (use.misses, use.rejections, use.defaults) == (0, 0, 0)
    assert use.hits == 20 * 2 * per_micro_batch, "20 iterations of 2 micro-batches"
    curve = run.curve()
    assert curve[20][0] < curve[1][0] - 0.3
    assert run.manifest().peak_tflops_per_device == 0.1


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with settings.json and trace.jsonl of the small experiment."""
    path = tmp_path_factory.mktemp("traced")
    dump(path, "trace")
    return path


def test_a_result_of_another_machine_is_refused(bench: Bench, traced: Path, tmp_path: Path) -> None:
    _, shapes = read_shapes(traced / "trace.jsonl")
    stack = load_backend(BackendSpec(name="cpu", threads=1)).stack()
    tuned = tmp_path / "tuned.jsonl"
    write_winners(tuned, shapes, replace(stack, device="Another CPU"))
    run = bench.run("wrong-stack", tuned=tuned, gemm_tuning={"enabled": True})
    status, output = run.fail()
    assert status == 2
    last = output.splitlines()[-1]
    assert last.startswith("error: ")
    assert f"device = 'Another CPU' there, '{stack.device}' here" in last
    assert "Fix: " in last
    assert "Traceback" not in output
    assert run.checkpoints() == []


def test_experts_find_a_kernel_for_nearly_every_number_of_tokens(
    bench: Bench, tmp_path: Path
) -> None:
    """Routing is real: no two micro-batches give an expert the same number of tokens."""
    model = {"experiment": "mixtral_8x7B_tiny"}
    shapes = dump(tmp_path, "trace", **model)
    varying = [shape for shape in shapes if shape.tokens is not None]
    assert len(varying) == 6
    sizes = [wanted.shape for wanted in expand(shapes, [0.5, 1.0, 2.0])]
    assert len(sizes) == len(shapes) + 2 * len(varying)
    stack = load_backend(BackendSpec(name="cpu", threads=1)).stack()
    write_winners(tmp_path / "tuned.jsonl", sizes, stack)
    keys: dict[str, Any] = {"gemm_tuning": {"enabled": True}, "train_iters": 10, "eval_iters": 0}
    run = bench.run("experts", tuned=tmp_path / "tuned.jsonl", **model, **keys)
    output = run.finish()
    use = run.manifest().tuned
    assert use is not None
    assert f"tuned GEMMs: {use.hits:,} calls took a tuned kernel" in output
    assert use.rejections == use.defaults == 0
    # Without the nearest ones, only the tuned numbers of tokens themselves would hit.
    nearest = sum(row.get("nearest", 0) for row in use.problems)
    calls = use.hits + use.misses
    assert (use.misses + nearest) / calls > 0.3
    assert use.misses / calls < 0.06
    # A line for each tuned problem and each family, not for each number of tokens. A single token
    # makes an operand of another layout.
    assert len(use.problems) <= len(sizes) + 2 * len(varying)
    print(f"misses: {(use.misses + nearest) / calls:.1%} without, {use.misses / calls:.1%} with")


def test_ranks_of_other_pipeline_stages_know_other_problems(
    bench: Bench, traced: Path, tmp_path: Path
) -> None:
    layout = {"nproc_per_node": 2, "pipeline_model_parallel_size": 2}
    # The stages of a pipeline call between them what one rank would.
    _, shapes = read_shapes(traced / "trace.jsonl")
    (logits,) = (s for s in shapes if s.problem.m == 512 and s.problem.transA == "T")
    stack = load_backend(BackendSpec(name="cpu", threads=1)).stack()
    # Only the last stage has this product: the first must not fail for want of a tuned one.
    write_winners(tmp_path / "tuned.jsonl", [logits], stack)
    keys: dict[str, Any] = {"gemm_tuning": {"enabled": True}, "train_iters": 2, "eval_iters": 0}
    run = bench.run("stages", tuned=tmp_path / "tuned.jsonl", **layout, **keys)
    run.finish()
    use = run.manifest().tuned
    assert use is not None
    by_problem = {row["problem"]: row for row in use.problems}
    assert by_problem[str(logits.problem)]["use"] == "hit"
    assert by_problem[str(logits.problem)]["calls"] == use.hits == 2 * 2 * logits.calls
    # Layers of both stages are of the same kind: their calls are added.
    missed = {row["problem"]: row["calls"] for row in use.problems if row["use"] == "miss"}
    dispatched = [s for s in shapes if dispatchable(s.problem) is None and s != logits]
    assert missed == {str(s.problem): 2 * 2 * s.calls for s in dispatched}


def test_verify_names_the_problem_that_was_not_applied(traced: Path, tmp_path: Path) -> None:
    stack = load_backend(BackendSpec(name="cpu", threads=1)).stack()
    tuned, recorded = tmp_path / "tuned.jsonl", traced / "trace.jsonl"
    _, shapes = read_shapes(recorded)
    write_winners(tuned, shapes, stack, sha256_file(recorded))
    header, rows = load_tuned(tuned)
    strange = max((row for row in rows if row.candidate != DEFAULT), key=lambda row: row.calls)
    save_lines(
        tuned,
        header,
        [r.model_copy(update={"candidate": "none"}) if r is strange else r for r in rows],
    )
    command = [
        *(sys.executable, "-m", "primus.tune", "--verify", "--tuned", str(tuned)),
        *("--settings", str(traced / "settings.json"), "--shapes", str(recorded)),
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"1 of {len(rows)} problems were not applied as tuned" in done.stderr
    (line,) = (line for line in done.stdout.splitlines() if "NOT APPLIED" in line)
    assert line.startswith(strange.text)
    assert line.endswith("NOT APPLIED: none is not known here")
    ours = [row for row in rows if row.candidate != DEFAULT]
    assert done.stdout.count(" applied") == len(ours) - 1
