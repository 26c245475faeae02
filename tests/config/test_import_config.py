"""Experiments of Primus, read into this project's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_root import REPOSITORY, Root
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from primus_files import BASE, EXPERIMENT, MODEL, write_experiment

from primus.config.load import load
from primus.config.schema.settings import Settings
from primus.errors import ConfigError, PrimusError
from primus.import_config import main
from primus.importing.convert import known_keys, row
from primus.importing.reference import END, START, table
from primus.importing.source import read_source
from primus.importing.tables import DROPPED, FAMILIES, OWN_NAMES, PRESET, RENAMED
from primus.importing.write import NotWritten

_TINY = "configs/models/llama3_8B_tiny.yaml"
_CHUNKS = "virtual_pipeline_model_parallel_size"
pytestmark = pytest.mark.usefixtures("root")


def run(path: Path, *arguments: str) -> None:
    main([str(path), *arguments])


def report(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return dict(json.loads(capsys.readouterr().out))


def rows(content: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    return {made["key"]: (made["status"], made["to"]) for made in content["keys"]}


def mistakes(path: Path, *arguments: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        run(path, *arguments)
    assert not Path("configs/small.yaml").exists()
    return str(caught.value).splitlines()


def test_an_experiment_becomes_one_of_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(write_experiment(tmp_path), "--json")
    content = report(capsys)
    found = rows(content)
    assert found["train_iters"] == ("mapped", {"train_iters": 50})
    assert found["lr"] == ("changed", {"lr": 1e-5})
    assert found["sequence_parallel"] == ("changed", {"sequence_parallel": False})
    assert found["mtp_num_layers"] == ("changed", {"mtp_num_layers": None})
    assert found["ckpt_format"] == ("dropped", {})
    assert found["work_group"] == ("dropped", {})
    assert found["bf16"] == ("assumed", {"bf16": True})
    assert content["environment"][0] == {"name": "PRIMUS_TEAM", "value": "lab", "given": False}
    made = load("small", stages=()).settings
    assert (made.model, made.hardware) == ("llama3_8B_tiny", "mi300x")
    assert (made.lr, made.seq_length, made.bf16, made.eval_iters) == (1e-5, 256, True, 0)
    assert made.hf_dataset is not None
    assert made.tokenizer_model == "some/tokenizer"


def test_every_line_of_the_file_is_accounted_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(write_experiment(tmp_path), "--json")
    overrides = yaml.safe_load(EXPERIMENT)["modules"]["pre_trainer"]["overrides"]
    found = report(capsys)["keys"]
    assert set(overrides) <= {made["key"] for made in found}
    lines = {made["where"] for made in found if made["where"].startswith("exp.yaml:")}
    without_value = {5, 6, 7, 11}
    assert lines == {f"exp.yaml:{n}" for n in range(1, 32) if n not in without_value}
    assert all(made["reason"] for made in found if made["status"] == "dropped")


def test_what_differs_from_the_published_model_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(write_experiment(tmp_path))
    text = capsys.readouterr().out
    warnings = text[text.index("\nwarnings\n") :]
    assert "norm_epsilon = 1e-06 is kept; configs/models/llama3_8B_tiny.yaml has 1e-05" in warnings
    assert "init_method_std = 0.008 is kept" in warnings
    assert "train_iters = 50 is a benchmark's length" in warnings
    assert 'PRIMUS_SEQ_LENGTH = "256" (default in the file)' in text


@pytest.mark.parametrize("flag", [(), ("--allow-unknown",)])
def test_unknown_and_unsupported_keys_are_never_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: tuple[str, ...]
) -> None:
    edit = ("ckpt_format: torch", 'clip_grd: 1.0\n      load: /ckpt\n      spec: ["a\\nb"]')
    path = write_experiment(tmp_path, edit)
    if not flag:
        assert mistakes(path) == [
            "exp.yaml:27: clip_grd = 1.0: is no key of Primus that is known here; did you mean "
            "clip_grad?. Fix: take the line out, or keep it as a comment with --allow-unknown",
            'exp.yaml:28: load = "/ckpt": is not done here; only null can be left out. Fix: take '
            "the line out, or keep it as a comment with --allow-unknown",
            'exp.yaml:29: spec = ["a\\nb"]: is not done here; only null can be left out. Fix: take '
            "the line out, or keep it as a comment with --allow-unknown",
        ]
    else:
        run(path, *flag)
        text = Path("configs/small.yaml").read_text()
        assert '#   "clip_grd": 1.0 (unknown)\n' in text
        assert '#   "spec": ["a\\nb"] (unsupported)\n' in text
        assert load("small", stages=()).settings.clip_grad == 1.0
    assert "unknown (1)\n  clip_grd = 1.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("micro_batch_size: 2", "micro_batch_size: x"), "exp.yaml:14: micro_batch_size"),
        (("global_batch_size: 16", "global_batch_size: 9"), "exp.yaml:15: global_batch_size = 9"),
        (("lr: 1e-5", "lr: -1.0"), "exp.yaml:18: lr = -1.0: must be > 0"),
        (("train_iters: 50", "train_iters: ["), "exp.yaml:"),
        (("train_iters: 50", "train_iters: *a"), "exp.yaml:13: "),
        (("train_iters: 50", "train_iters: !!int 3"), "exp.yaml:13: "),
        (("framework: megatron", "framework: torchtitan"), "only megatron can be read"),
        (("config: pre_trainer", "config: sft_trainer"), "only pre_trainer.yaml can be read"),
        (("  pre_trainer:", "  post_trainer:"), "exp.yaml:6: modules.pre_trainer is missing"),
        (("llama3_8B_tiny.yaml", "../../x"), "exp.yaml:10: modules.pre_trainer.model"),
        (
            ("llama3_8B_tiny", "other"),
            "exp.yaml:10: modules.pre_trainer.model: there is no configs/models/other",
        ),
        (("_NAME:small", "_NAME:a b"), "exp.yaml:3: exp_name"),
        (("_SEQ_LENGTH:256", "_SEQ_LENGTH"), "the environment has no variable PRIMUS_SEQ_LENGTH"),
        (("PRIMUS_TEAM:lab", "HF_TOKEN"), "HF_TOKEN looks like a secret"),
        (("train_data_path: null", "train_data_path: 1 /a"), "data_path=[corpus/*.txt]"),
        (("save: null", "optimizer: muon"), 'exp.yaml:28: optimizer = "muon": is not done here'),
        (("save: null", "HSA_X: 1"), "looks like an environment variable"),
        (("workspace: ./results", "teams: 1"), "exp.yaml:4: teams = 1: is no key of Primus"),
        (("save: null", "extends: x"), "exp.yaml:28: extends"),
        (("user_name: someone", "extends: exp.yaml"), "extends itself"),
        (("user_name: someone", "extends: absent.yaml"), "absent.yaml: there is no such file"),
    ],
)
def test_mistakes_name_the_line_in_the_file(
    tmp_path: Path, edit: tuple[str, str], message: str
) -> None:
    found = mistakes(write_experiment(tmp_path, edit))
    assert any(message in line for line in found), found
    assert all("Fix: " in line for line in found)


def test_the_environment_wins_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRIMUS_SEQ_LENGTH", "128")
    run(write_experiment(tmp_path), "--json")
    content = report(capsys)
    assert content["values"]["seq_length"] == 128
    variables = {made["name"]: made for made in content["environment"]}
    assert variables["PRIMUS_SEQ_LENGTH"]["given"]


def test_values_on_the_command_line_win_and_are_written(tmp_path: Path) -> None:
    run(
        write_experiment(tmp_path, ("train_data_path: null", "train_data_path: 1 /a")),
        *("--output", "configs/b.yaml"),
        *("--config", "hardware=cpu", "data_path=[corpus/*.txt]", "tensor_model_parallel_size=2"),
    )
    made = load("b").settings
    assert (made.hardware, made.data_path, made.hf_dataset) == ("cpu", ["corpus/*.txt"], None)
    assert (made.tensor_model_parallel_size, made.sequence_parallel) == (2, True)
    assert made.dataset == "b"


def test_an_existing_file_is_replaced_only_by_force(tmp_path: Path, root: Root) -> None:
    path, before = write_experiment(tmp_path), root.read()
    with pytest.raises(NotWritten, match="--force"):
        run(path, "--output", "configs/x.yaml")
    assert root.read() == before
    run(path, "--output", "configs/x.yaml", "--force")
    assert root.read() != before


@pytest.mark.parametrize("output", ["other/x.yaml", "configs/x.json", "configs/-x.yaml"])
def test_the_output_is_an_experiment_file(tmp_path: Path, output: str) -> None:
    with pytest.raises(ConfigError, match=r"configs/NAME\.yaml"):
        run(write_experiment(tmp_path), "--output", output)


def test_the_folder_names_the_hardware(tmp_path: Path) -> None:
    run(write_experiment(tmp_path / "H100"))
    assert yaml.safe_load(Path("configs/small.yaml").read_text())["hardware"] == "h100"


@pytest.mark.parametrize("key", ["extends", "bases", "includes"])
def test_a_model_that_is_not_ours_is_read_from_its_file(tmp_path: Path, key: str) -> None:
    folder = tmp_path / "tree/primus/configs/models/megatron"
    folder.mkdir(parents=True)
    (folder / "own.yaml").write_text(MODEL.replace("extends", key))
    (folder / "own_base.yaml").write_text(BASE)
    path = write_experiment(
        tmp_path / "tree/examples", ("llama3_8B_tiny", "own"), ("tokenizer_model: some/", "#")
    )
    found = mistakes(path)
    assert len(found) == 1
    assert "vocab_size" in found[0]
    assert "required key is missing" in found[0]
    run(path, "--config", "vocab_size=2048", "tensor_model_parallel_size=2")
    model = yaml.safe_load(Path("configs/models/own.yaml").read_text())
    assert model["num_layers"] == 2
    assert model["vocab_size"] == 2048
    assert "kv_lora_rank" not in model
    assert "moe_router_topk" not in model
    made = load("small", stages=()).settings
    assert (made.num_query_groups, made.rotary_base, made.max_position_embeddings) == (2, 5e5, 256)
    assert (made.sequence_parallel, made.transformer_impl) == (True, "auto")
    assert made.tokenizer_model == "some/other"


def test_a_changed_architecture_gives_up_the_published_count(tmp_path: Path, root: Root) -> None:
    root.edit("num_layers:", "published_parameters: 1\nnum_layers:", _TINY)
    text = "num_layers: 1\n      mock_data: true"
    with pytest.raises(ConfigError, match="published_parameters"):
        run(write_experiment(tmp_path))
    run(write_experiment(tmp_path, ("mock_data: true", text)))
    assert load("small", stages=()).settings.published_parameters is None


def test_latent_attention_that_is_turned_off_takes_its_ranks_along(tmp_path: Path) -> None:
    edits = (
        ("llama3_8B_tiny", "deepseek_v2_tiny"),
        ("mock_data: true", "multi_latent_attention: false"),
    )
    run(write_experiment(tmp_path, *edits))
    made = load("small", stages=()).settings
    assert (made.multi_latent_attention, made.kv_lora_rank, made.rope_type) == (False, None, "rope")


def test_the_nodes_follow_from_the_parallel_sizes(tmp_path: Path) -> None:
    edits = (
        ("llama3_8B_tiny", "deepseek_v2_tiny"),
        ("mock_data: true", "expert_model_parallel_size: 8\n      pipeline_model_parallel_size: 2"),
    )
    run(write_experiment(tmp_path, *edits), "--config", "num_layers=4")
    assert load("small", stages=()).settings.nodes == 2


@pytest.mark.parametrize(
    ("key", "value", "context", "status", "to"),
    [
        ("layernorm_epsilon", 1e-6, {}, "changed", {"norm_epsilon": 1e-6}),
        (_CHUNKS, 1, {}, "changed", {_CHUNKS: None}),
        ("num_virtual_stages_per_pipeline_rank", 4, {}, "changed", {_CHUNKS: 4}),
        ("group_query_attention", False, {}, "changed", {"num_query_groups": None}),
        ("moe_layer_freq", "1", {"num_experts": 8}, "changed", {"moe_layer_freq": 1}),
        ("rope_type", None, {"multi_latent_attention": True}, "changed", {"rope_type": "yarn"}),
        ("recompute_method", "block", {}, "dropped", {}),
        ("moe_router_topk", 4, {}, "dropped", {}),
        ("lora", {"enabled": False}, {}, "dropped", {}),
        ("lora", {"enabled": True}, {}, "unsupported", {}),
        ("tokenizer_type", "NullTokenizer", {}, "unsupported", {}),
        ("hardware", "x", {}, "unknown", {}),
        ("wandb_anything", "x", {}, "dropped", {}),
    ],
)
def test_single_keys(
    key: str, value: Any, context: dict[str, Any], status: str, to: dict[str, Any]
) -> None:
    made = row(key, value, "", context)
    assert (made.status, made.to) == (status, to)


def test_recomputation_of_no_layer_is_none() -> None:
    context = {"recompute_granularity": "full", "recompute_num_layers": 0}
    for key in ("recompute_granularity", "recompute_method", "recompute_num_layers"):
        assert row(key, "x", "", context).to == {key: None}


def test_the_tables_and_the_schema_do_not_contradict_each_other() -> None:
    ours = set(Settings.model_fields)
    assert set(PRESET) <= ours - OWN_NAMES
    assert set(RENAMED.values()) <= ours
    assert not (set(DROPPED) | set(RENAMED)) & ours
    assert all(drop.reason for drop in (*DROPPED.values(), *FAMILIES.values()))
    assert not [key for key in ours - OWN_NAMES if key.startswith(tuple(FAMILIES))]


def test_the_page_lists_every_key() -> None:
    text = (REPOSITORY / "docs/from-primus.md").read_text()
    shown = table()
    assert text[text.index(START) : text.index(END) + len(END)] == shown
    assert all(f"`{key}`" in shown for key in known_keys())


@given(st.text(alphabet="modules:pre_trainer\n []{}&*!#'\"%$-,?|>é\x85\u2028\t", max_size=200))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_but_our_errors_comes_out_of_odd_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(PrimusError):
        run(path, "--output", "configs/odd.yaml")


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@given(key=st.sampled_from(sorted(known_keys() | {"nonsense"})), value=_VALUES)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_odd_values_are_mapped_dropped_or_refused(tmp_path: Path, key: str, value: Any) -> None:
    content = yaml.safe_load(EXPERIMENT)
    content["modules"]["pre_trainer"]["overrides"][key] = value
    path = tmp_path / "odd.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True))
    try:
        run(path, "--output", "configs/odd.yaml", "--force", "--allow-unknown")
        refused = ""
    except PrimusError as error:
        refused = str(error)
    if refused:
        assert all("Fix: " in line for line in refused.splitlines())
    else:
        load("odd", stages=())


def test_variables_are_put_in_as_primus_does(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: ${X:1}\nb: p_${Y}.yaml\nc: ['${Z:true}', {d: '${W:null}'}]\n")
    source = read_source(path, {"Y": "q"})
    assert source.values == {"a": 1, "b": "p_q.yaml", "c": [True, {"d": None}]}
    assert source.variables["Y"].given
