"""The plan of a run: what it says, where it says it, and that its proposals hold."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from config_root import REPOSITORY

from primus.config import memory
from primus.config.announce import Announcer
from primus.config.arguments import overrides
from primus.config.checks import Context, faults
from primus.config.estimate import estimate, stage_flops
from primus.config.flops import flops_per_token
from primus.config.load import experiments, load
from primus.config.pipeline import Pipeline, Plan, mentioned
from primus.config.propose import propose
from primus.config.schema.settings import Settings
from primus.config.summary import line
from primus.errors import ConfigError
from primus.plan import main

FULL_SIZE = [name for name in experiments(REPOSITORY) if not name.endswith("_tiny")]
FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
PROPOSAL = re.compile(r"write (.*) \((\d+\.\d) GiB\), or name other hardware")


def settings(name: str, **changes: Any) -> Settings:
    """The settings of a shipped experiment with changes that nobody checks."""
    return load(name, root=REPOSITORY, stages=()).settings.model_copy(update=changes)


def planned(name: str, **changes: Any) -> Plan:
    return Pipeline(changes, REPOSITORY).plan(name, "train")


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_full_size_recipe_really_trains(name: str) -> None:
    s = settings(name)
    assert memory.fullest(s).gib["total"] <= s.device_memory_gib
    assert s.tokenizer_model
    assert s.hf_dataset or s.data_path
    assert s.save_interval <= s.train_iters
    assert 0 < s.lr_warmup_iters < s.lr_decay_iters <= s.train_iters
    # Twice the nodes need no other batch.
    doubled = s.model_copy(update={"nodes": 2 * s.nodes})
    assert not faults(doubled, Context(root=REPOSITORY, stages=frozenset()))


@pytest.mark.parametrize("hardware", ["mi300x", "h200", "h100"])
@pytest.mark.parametrize("name", FULL_SIZE)
def test_what_does_not_fit_comes_with_a_proposal_that_does(name: str, hardware: str) -> None:
    values: dict[str, Any] = {"hardware": hardware}
    try:
        load(name, values, root=REPOSITORY, stages=())
        return
    except ConfigError as error:
        (problem,) = error.problems
    assert problem.key == "device_memory_gib"
    words = PROPOSAL.fullmatch(problem.fix)
    assert words, problem.fix
    for change in words[1].split(", "):
        key, _, value = change.partition(": ")
        values[key] = json.loads(value) if value in ("true", "false") else value
    fits = load(name, values, root=REPOSITORY, stages=()).settings
    assert f"{memory.fullest(fits).gib['total']:.1f}" == words[2]


def test_a_proposal_takes_no_more_nodes_than_it_needs() -> None:
    s = settings("llama3_8B")
    assert propose(s, 1e6, lambda tried: True) == {}
    assert propose(s, 1.0, lambda tried: True, more_nodes=False) is None
    small = propose(s, 100.0, lambda tried: True)
    assert small is not None
    assert "nodes" not in small


def test_a_step_takes_the_slowest_stage_and_the_wait_for_the_pipeline() -> None:
    s = settings("llama3_70B", pipeline_model_parallel_size=8, micro_batch_size=1)
    s = s.model_copy(update={"recompute_granularity": None, "recompute_method": None})
    found = estimate(s, efficiency=0.5)
    assert found is not None
    # Eight stages of ten layers; the last one multiplies with the output layer as well.
    slowest = max(stage_flops(s))
    assert slowest == stage_flops(s)[7] > stage_flops(s)[0]
    seconds = (128 + 7) * slowest * 8192 / (668e12 * 0.5)
    assert found.seconds_per_step == pytest.approx(seconds)
    assert found.bubble == pytest.approx(7 / 135)
    assert found.recomputed == pytest.approx(0)
    assert found.gpu_hours == pytest.approx(seconds * 20000 * 8 / 3600)
    interleaved = s.model_copy(update={"virtual_pipeline_model_parallel_size": 5})
    shorter = estimate(interleaved, efficiency=0.5)
    assert shorter is not None
    assert shorter.bubble == pytest.approx(7 / 5 / (128 + 7 / 5))


def test_recomputation_costs_a_forward_pass() -> None:
    s = settings("llama3_8B")
    once = sum(stage_flops(s))
    assert once == flops_per_token(s)
    layers = once - 6 * 4096 * 128256
    assert sum(stage_flops(s.model_copy(update=FULL))) == pytest.approx(once + layers / 3)
    half = FULL | {"recompute_method": "block", "recompute_num_layers": 16}
    assert sum(stage_flops(s.model_copy(update=half))) == pytest.approx(once + layers / 6)
    mlp = {"recompute_granularity": "selective", "recompute_modules": ["mlp", "layernorm"]}
    feed_forward = 32 * 2 * 3 * 4096 * 14336
    assert sum(stage_flops(s.model_copy(update=mlp))) == pytest.approx(once + feed_forward)


def test_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    main(["deepseek_v3", "--json", "--config", "train_iters=10000", "lr_decay_iters=10000"])
    plan = json.loads(capsys.readouterr().out)
    assert plan["parameters"]["total"] == plan["parameters"]["published"] == 671_026_419_200
    assert plan["parameters"]["active"] == 37_552_297_472
    assert plan["parameters"]["multi_token_prediction"] == 11_610_068_224
    gib = plan["memory_per_rank_gib"]
    assert set(gib) == {
        "weights", "gradients", "optimizer", "activations", "reserve", "total",
    }  # fmt: skip
    assert gib["total"] < plan["device_memory_gib"]
    assert plan["tokens"] == 10000 * plan["tokens_per_step"] == 10000 * 2048 * 4096
    assert plan["time"]["gpu_hours"] > 0


def test_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    main(["llama3_8B", "--hardware", "h200", "--config", "micro_batch_size=1"])
    shown = capsys.readouterr().out
    assert "8,030,261,248, as published" in shown
    assert "55% of the measured 795 TFLOP/s" in shown
    assert "of 139.8" in shown
    main(["llama3_8B_tiny", "--hardware", "cpu"])
    assert "no measured peak_tflops" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"write tensor_model_parallel_size: 2"):
        main(["llama3_8B", "--hardware", "h100"])


def test_the_line_of_a_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    made = planned("deepseek_v3")
    text = line(made.settings)
    assert "\n" not in text
    assert text.startswith("deepseek_v3: 671B parameters (37.6B active); TP 1, PP 8, EP 16, DP 16")
    announcer = Announcer(["-n", "train_deepseek_v3", "--config", "nodes=16"])
    announcer.announce("data", made)
    assert capsys.readouterr().err == ""
    announcer.announce("train", made)
    announcer.announce("report", made)
    assert capsys.readouterr().err == text + "\n"


@pytest.mark.parametrize(
    "word", ["--mode", "--mode=subprocess", "-q", "--quiet", "--summary", "--dag", "--lint", "-D"]
)
def test_the_line_stays_out_of_jobs_and_of_what_programs_read(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Announcer(["-n", word, "train_llama3_8B"]).announce("train", planned("llama3_8B"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("hardware", ["h200", "h100"])
@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_recipe_fits_elsewhere_as_its_comment_says(name: str, hardware: str) -> None:
    text = (REPOSITORY / f"configs/{name}.yaml").read_text().replace("\n#     ", " ")
    found = re.search(rf"^#   (hardware={hardware}.*)$", text, re.MULTILINE)
    values = overrides((found[1] if found else f"hardware={hardware}").split())
    fits = load(name, values, root=REPOSITORY, stages=()).settings
    assert fits.hardware == hardware
    assert memory.fullest(fits).gib["total"] <= 0.95 * (fits.device_memory_gib or 0)


def test_a_fully_sharded_job_may_stay_so() -> None:
    changes = {"use_torch_fsdp2": True, "use_distributed_optimizer": False, "hardware": "h200"}
    one = {"tensor_model_parallel_size": 1, "sequence_parallel": False}
    with pytest.raises(ConfigError, match=r"Fix: write nodes: 2 \("):
        load("llama3_70B", changes | one, root=REPOSITORY, stages=())


@pytest.mark.parametrize("share", ["0", "3", "x", "nan"])
def test_a_share_of_the_peak_is_a_share(share: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["llama3_8B", "--efficiency", share])
    assert ended.value.code == 2
    assert f"{share} is not a number above 0 and at most 1" in capsys.readouterr().err


CALL = ["/x/bin/snakemake", "-n", "--cores", "all"]
NAMES = ["a1", "a1_tiny", "b2"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (CALL, []),
        ([*CALL, "train_b2"], ["b2"]),
        ([*CALL, "train_a1_tiny"], ["a1", "a1_tiny"]),
        ([*CALL, "--forcerun=report_a1", "data_b2"], ["a1", "b2"]),
        ([*CALL, "-Rexport_b2"], ["b2"]),
        (["/x/snakemake/__main__.py", "--target-jobs", "train:experiment=b2,key=0"], ["b2"]),
        ([*CALL, "--list-target-rules"], NAMES),
        ([*CALL, "--lt"], NAMES),
        ([*CALL, "-l"], NAMES),
        ([*CALL, "-nl"], NAMES),
        ([*CALL, "--lint", "text"], NAMES),
        (["planned.py", "train_b2"], NAMES),
        (["-c"], NAMES),
        ([""], NAMES),
    ],
)
def test_only_the_experiments_of_a_call_get_rules(argv: list[str], expected: list[str]) -> None:
    assert mentioned(argv, NAMES) == expected
