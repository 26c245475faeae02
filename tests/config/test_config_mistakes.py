"""Every mistake is one line with file, key, value and fix, and all of them come at once."""

from __future__ import annotations

import re
from typing import Any

import pytest
from config_root import Root

from primus.config.load import experiments, load
from primus.errors import ConfigError

MODEL = "configs/models/llama3_8B_tiny.yaml"
CPU = "configs/hardware/cpu.yaml"


def lines(root: Root, **overrides: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load("x", overrides, root=root.path)
    return str(caught.value).splitlines()


# (text in configs/x.yaml, its replacement, the whole message)
EDITS = [
    pytest.param(
        "lr: 3.0e-3",
        "lrr: 3.0e-3\nlr: 3.0e-3",
        "configs/x.yaml:12: lrr = 0.003: unknown key. Fix: did you mean lr?",
        id="misspelt",
    ),
    pytest.param(
        "lr: 3.0e-3",
        "lr: 3.0e-3\nfrobnicate: 1",
        "configs/x.yaml:13: frobnicate = 1: unknown key. "
        "Fix: remove it, or see docs/reference.md for the known keys",
        id="unknown",
    ),
    pytest.param(
        "  budget_minutes: 0.5",
        "  budget_minute: 0.5",
        "configs/x.yaml:22: gemm_tuning.budget_minute = 0.5: unknown key. "
        "Fix: did you mean gemm_tuning.budget_minutes?",
        id="misspelt in a group",
    ),
    pytest.param(
        "eval_iters: 4",
        "eval_iters: 4\nbudget_minutes: 1",
        "configs/x.yaml:19: budget_minutes = 1: unknown key. "
        "Fix: did you mean gemm_tuning.budget_minutes?",
        id="outside its group",
    ),
    pytest.param(
        "eval_iters: 4",
        "eval_iters: 4\nlr: 1.0",
        "configs/x.yaml:19: lr: stands twice, first on line 12. Fix: remove one of the two",
        id="duplicate",
    ),
    pytest.param(
        "  budget_minutes: 0.5",
        "  budget_minutes: 0.5\n  budget_minutes: 1",
        "configs/x.yaml:23: gemm_tuning.budget_minutes: stands twice, first on line 22. "
        "Fix: remove one of the two",
        id="duplicate in a group",
    ),
    pytest.param(
        "lr: 3.0e-3",
        "lr: 1e-4",
        'configs/x.yaml:12: lr = "1e-4": must be a number. '
        "Fix: write 1.0e-4 (YAML reads 1e-4 as text)",
        id="number that YAML reads as text",
    ),
    pytest.param(
        "train_iters: 200",
        "train_iters: 1:00:00",
        'configs/x.yaml:11: train_iters = "1:00:00": must be a whole number. '
        "Fix: write a whole number",
        id="a time, of which YAML 1.1 makes 3600",
    ),
    pytest.param(
        "train_iters: 200",
        "train_iters: 0200",
        'configs/x.yaml:11: train_iters = "0200": must be a whole number. '
        "Fix: write 200 without quotes",
        id="zeros in front, of which YAML 1.1 makes 128",
    ),
    pytest.param(
        "train_iters: 200",
        "train_iters: 2e2",
        'configs/x.yaml:11: train_iters = "2e2": must be a whole number. Fix: write a whole number',
        id="whole number as text",
    ),
    pytest.param(
        "train_iters: 200",
        "train_iters: 200.0",
        "configs/x.yaml:11: train_iters = 200.0: must be a whole number. Fix: write 200",
        id="float for a whole number",
    ),
    pytest.param(
        "train_iters: 200",
        "train_iters: true",
        "configs/x.yaml:11: train_iters = true: must be a whole number. Fix: write a whole number",
        id="boolean for a number",
    ),
    pytest.param(
        "train_iters: 200",
        'train_iters: "200"',
        'configs/x.yaml:11: train_iters = "200": must be a whole number. '
        "Fix: write 200 without quotes",
        id="quoted number",
    ),
    pytest.param(
        "demo\ndata_path: [corpus/*.txt]",
        "demo\ndata_path: corpus/*.txt",
        'configs/x.yaml:4: data_path = "corpus/*.txt": must be a list such as [a, b]. '
        "Fix: write [corpus/*.txt]",
        id="text for a list",
    ),
    pytest.param(
        "split: 94,5,1",
        "split: 94,6",
        r'configs/x.yaml:8: split = "94,6": does not match ^\d+(\.\d+)?(,\d+(\.\d+)?){2}$. '
        "Fix: write three shares such as 969,30,1",
        id="pattern",
    ),
    pytest.param(
        "gemm_tuning:\n  budget_minutes: 0.5",
        "gemm_tuning: 5",
        "configs/x.yaml:21: gemm_tuning = 5: must be a group of 'name: value' lines. "
        "Fix: write a group of 'name: value' lines",
        id="number for a group",
    ),
    pytest.param(
        "lr_warmup_iters: 20",
        "lr_warmup_iters: -1",
        "configs/x.yaml:16: lr_warmup_iters = -1: must be >= 0. Fix: write a value >= 0",
        id="out of bounds",
    ),
    pytest.param(
        "lr: 3.0e-3",
        "lr: .inf",
        "configs/x.yaml:12: lr = Infinity: must be finite. Fix: write a number",
        id="infinite",
    ),
    pytest.param(
        "lr_decay_style: cosine",
        "lr_decay_style: cosin",
        'configs/x.yaml:14: lr_decay_style = "cosin": is not one of the allowed values. '
        "Fix: did you mean cosine? allowed: constant, linear, cosine, WSD",
        id="not allowed",
    ),
    pytest.param(
        "seq_length: 256\n",
        "",
        "configs/x.yaml: seq_length: required key is missing. "
        "Fix: add 'seq_length: ...' (Tokens per sample.)",
        id="missing",
    ),
    pytest.param(
        "model: llama3_8B_tiny",
        "model: llama3_8_tiny",
        'configs/x.yaml:1: model = "llama3_8_tiny": there is no configs/models/llama3_8_tiny.yaml. '
        "Fix: did you mean llama3_8B_tiny?",
        id="unknown model",
    ),
    pytest.param(
        "hardware: cpu",
        "hardware: h300",
        'configs/x.yaml:2: hardware = "h300": there is no configs/hardware/h300.yaml. '
        "Fix: did you mean h200?",
        id="unknown hardware",
    ),
    pytest.param(
        "hardware: cpu",
        "hardware: ../../etc/passwd",
        'configs/x.yaml:2: hardware = "../../etc/passwd": is not a name: it becomes part of paths '
        "and commands. Fix: use letters, digits, '_', '.' and '-', a letter or digit first, "
        "at most 64",
        id="path for a name",
    ),
    pytest.param(
        "dataset: demo",
        'dataset: "demo; touch pwned"',
        'configs/x.yaml:3: dataset = "demo; touch pwned": is not a name: it becomes part of paths '
        "and commands. Fix: use letters, digits, '_', '.' and '-', a letter or digit first, "
        "at most 64",
        id="hostile name",
    ),
    pytest.param(
        "dataset: demo",
        'dataset: "demo\\n"',
        'configs/x.yaml:3: dataset = "demo\\n": is not a name: it becomes part of paths '
        "and commands. Fix: use letters, digits, '_', '.' and '-', a letter or digit first, "
        "at most 64",
        id="name with a line break",
    ),
    pytest.param(
        "dataset: demo",
        "dataset: demo\n__use_yte__: true",
        "configs/x.yaml:4: __use_yte__ = true: executes Python code when other tools read the "
        "file. Fix: remove the line",
        id="yte",
    ),
    pytest.param(
        "dataset: demo",
        "dataset: !!python/object/apply:os.system [touch pwned]",
        "configs/x.yaml:3: dataset: uses the tag !!python/object/apply:os.system. "
        "Fix: write a plain value without a tag",
        id="python tag",
    ),
    pytest.param(
        "dataset: demo",
        "dataset: &a demo\nmodel2: *a",
        "configs/x.yaml:4: model2: uses the alias *a. Fix: write the value out",
        id="alias",
    ),
    pytest.param(
        "dataset: demo",
        "dataset: {{a: 1}: 2}",
        "configs/x.yaml:3: dataset: has a key that is not plain text. Fix: write the key as a word",
        id="mapping as a key",
    ),
    pytest.param(
        "dataset: demo",
        "dataset: demo\nexperiment: y",
        'configs/x.yaml:4: experiment = "y": cannot be set. '
        "Fix: remove it; the file's name is the experiment's name",
        id="name of the experiment",
    ),
    pytest.param(
        "dataset: demo",
        "dataset: ${PRIMUS_NO_SUCH_VARIABLE}",
        "configs/x.yaml:3: dataset: the environment has no variable PRIMUS_NO_SUCH_VARIABLE. Fix: "
        "export PRIMUS_NO_SUCH_VARIABLE=... or write ${PRIMUS_NO_SUCH_VARIABLE:default}",
        id="unset variable",
    ),
    pytest.param(
        "dataset: demo",
        "dataset: ${HF_TOKEN}",
        "configs/x.yaml:3: dataset: HF_TOKEN looks like a secret, and every setting is written "
        "into files. Fix: leave it in the environment only; the stages read it there",
        id="secret variable",
    ),
    pytest.param(
        "dataset: demo",
        "dataset: demo\nenv: {HF_TOKEN: hf_canary}",
        "configs/x.yaml:4: env.HF_TOKEN: looks like a secret, and every setting is written into "
        "files. Fix: remove the line; export it before the run, ranks inherit the environment",
        id="secret in env",
    ),
    pytest.param(
        "demo\ndata_path: [corpus/*.txt]",
        "demo\ndata_path: [corpus/*.txt, corpus/*.jsonl]",
        'configs/x.yaml:4: data_path.1 = "corpus/*.jsonl": matches no file. '
        "Fix: name an existing file; relative paths start at the root",
        id="missing file",
    ),
    pytest.param(
        "demo\ndata_path: [corpus/*.txt]",
        "demo\ndata_path: [../secret.txt]",
        "configs/x.yaml:4: data_path.0 = \"../secret.txt\": climbs out of the root by '..'. "
        "Fix: write the absolute path",
        id="file outside the root",
    ),
    pytest.param(
        "  budget_minutes: 0.5",
        "  store: /var/store",
        'configs/x.yaml:22: gemm_tuning.store = "/var/store": leaves the root of the project. '
        "Fix: write a path below the root; to share it elsewhere make it a symbolic link",
        id="store outside the root",
    ),
]


@pytest.mark.fault(
    30,
    40,
    injected="keys misspelt, unknown, repeated; YAML that runs code; names with paths",
    observed="one line with file, key, value and fix",
)
@pytest.mark.parametrize(("before", "after", "message"), EDITS)
def test_one_mistake_is_one_line(root: Root, before: str, after: str, message: str) -> None:
    root.edit(before, after)
    assert lines(root) == [message]


# (values on the command line, the messages)
COMBINATIONS = [
    pytest.param(
        {"nproc_per_node": 3, "tensor_model_parallel_size": 2},
        [
            "--config: nproc_per_node = 3: 3 ranks (nodes 1 x nproc_per_node 3) cannot be split "
            "into groups of TP 2 x PP 1 x CP 1 = 2. "
            "Fix: make the product one of 1, 3, or the ranks a multiple of 2"
        ],
        id="ranks",
    ),
    pytest.param(
        {"global_batch_size": 20},
        [
            "--config: global_batch_size = 20: is not a multiple of micro_batch_size 4 x data "
            "parallel size 2 = 8. Fix: write 16 or 24"
        ],
        id="batch",
    ),
    pytest.param(
        {"nproc_per_node": 12, "global_batch_size": 48, "tensor_model_parallel_size": 3},
        [
            "--config: tensor_model_parallel_size = 3: num_attention_heads 8 is not a multiple of "
            "it. Fix: write one of 1, 2, 4, 8",
            f"{MODEL}:5: ffn_hidden_size = 448: is not a multiple of tensor_model_parallel_size 3. "
            "Fix: write 450",
        ],
        id="heads and feed-forward",
    ),
    pytest.param(
        {"nproc_per_node": 4, "tensor_model_parallel_size": 4},
        [
            "--config: tensor_model_parallel_size = 4: num_query_groups 2 is not a multiple of it. "
            "Fix: write one of 1, 2"
        ],
        id="query groups and ranks",
    ),
    pytest.param(
        {"num_query_groups": 3},
        [
            "--config: num_query_groups = 3: num_attention_heads 8 is not a multiple of it. "
            "Fix: write one of 1, 2, 4, 8"
        ],
        id="query groups",
    ),
    pytest.param(
        {"hidden_size": 129},
        [
            "--config: hidden_size = 129: is not a multiple of num_attention_heads 8. "
            "Fix: change one of the two, or write kv_channels"
        ],
        id="hidden size",
    ),
    pytest.param(
        {"nproc_per_node": 3, "pipeline_model_parallel_size": 3},
        [
            "--config: pipeline_model_parallel_size = 3: num_layers 4 is not a multiple of it. "
            "Fix: write one of 1, 2, 4"
        ],
        id="pipeline",
    ),
    pytest.param(
        {"virtual_pipeline_model_parallel_size": 2},
        [
            "--config: virtual_pipeline_model_parallel_size = 2: needs "
            "pipeline_model_parallel_size > 1. Fix: remove the line, or raise PP"
        ],
        id="chunks without a pipeline",
    ),
    pytest.param(
        {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 3},
        [
            "--config: virtual_pipeline_model_parallel_size = 3: the 2 layers of a pipeline stage "
            "are not a multiple of it. Fix: write one of 1, 2, or null"
        ],
        id="chunks",
    ),
    pytest.param(
        {"sequence_parallel": True},
        [
            "--config: sequence_parallel = true: needs tensor_model_parallel_size > 1. "
            "Fix: write false, or raise tensor_model_parallel_size"
        ],
        id="sequence parallel",
    ),
    pytest.param(
        {"seq_length": 255, "sequence_parallel": True, "tensor_model_parallel_size": 2},
        [
            "--config: seq_length = 255: sequence_parallel splits it over 2 ranks (TP x CP), not "
            "evenly. Fix: write a multiple of 2"
        ],
        id="sequence parallel length",
    ),
    pytest.param(
        {"seq_length": 1024},
        [
            "--config: seq_length = 1024: is longer than max_position_embeddings 512 of the model. "
            "Fix: write at most 512"
        ],
        id="sequence too long",
    ),
    pytest.param(
        {"seq_length": 254, "context_parallel_size": 2},
        [
            "--config: seq_length = 254: is not a multiple of 2 x context_parallel_size = 4. "
            "Fix: write 256"
        ],
        id="context parallel",
    ),
    pytest.param(
        {"bf16": True, "fp16": True},
        ["--config: fp16 = true: bf16 is true as well. Fix: keep one of the two"],
        id="precision",
    ),
    pytest.param(
        {"lr_warmup_iters": 200},
        [
            "--config: lr_warmup_iters = 200: is not below the length of the schedule "
            "(lr_decay_iters 200). Fix: write at most 199"
        ],
        id="warm-up",
    ),
    pytest.param(
        {"min_lr": 0.1},
        ["--config: min_lr = 0.1: is above lr 0.003. Fix: write at most 0.003"],
        id="min_lr",
    ),
    pytest.param(
        {"lr_decay_style": "WSD"},
        [
            "configs/x.yaml: lr_wsd_decay_iters: is required where lr_decay_style is WSD. "
            "Fix: add it, for example a tenth of lr_decay_iters"
        ],
        id="WSD",
    ),
    pytest.param(
        {"lr_decay_style": "WSD", "lr_wsd_decay_iters": 190},
        [
            "--config: lr_wsd_decay_iters = 190: does not fit between the warm-up and the end of "
            "the schedule (200). Fix: write at most 180"
        ],
        id="WSD too long",
    ),
    pytest.param(
        {"split": "0,0,0"},
        [
            '--config: split = "0,0,0": leaves nothing to train on. '
            "Fix: write a first share above 0",
            '--config: split = "0,0,0": leaves nothing to validate on, and eval_iters is above 0. '
            "Fix: write a second share above 0, or eval_iters: 0",
            "configs/x.yaml: evaluation.texts: is empty, and split 0,0,0 leaves nothing to validate"
            " on. Fix: name text files, or write a second share above 0",
        ],
        id="split",
    ),
    pytest.param(
        {"tokenizer_vocab_size": 4096},
        [
            "--config: tokenizer_vocab_size = 4096: is above vocab_size 2048: the model has no row "
            "for the last ids. Fix: write at most 2048"
        ],
        id="vocabulary",
    ),
    pytest.param(
        {"tokenizer_model": "org/name"},
        [
            'configs/x.yaml:5: tokenizer_data_path = ["corpus/*.txt"]: tokenizer_model names a '
            "finished tokenizer as well. Fix: keep one of the two",
            "configs/x.yaml:6: tokenizer_vocab_size = 2048: belongs to a trained tokenizer, and "
            "tokenizer_model names a finished one. Fix: remove the line",
        ],
        id="two tokenizers",
    ),
    pytest.param(
        {"tokenizer_data_path": []},
        [
            "--config: tokenizer_data_path = []: there is no tokenizer: tokenizer_model is not set "
            "either. Fix: write tokenizer_model: <hub id or directory>, or the text to train one "
            "from"
        ],
        id="no tokenizer",
    ),
    pytest.param(
        {"hf_dataset": {"path": "allenai/c4"}},
        [
            'configs/x.yaml:4: data_path = ["corpus/*.txt"]: hf_dataset is set as well. '
            "Fix: keep one of the two"
        ],
        id="two sources of text",
    ),
    pytest.param(
        {"data_path": []},
        [
            "--config: data_path = []: there is no text: hf_dataset is not set either. "
            "Fix: write data_path: [files], or hf_dataset: {path: <hub id>}"
        ],
        id="no text",
    ),
    pytest.param(
        {"recompute_granularity": "full"},
        [
            '--config: recompute_granularity = "full": needs recompute_method. '
            "Fix: add recompute_method: uniform (or block)",
            '--config: recompute_granularity = "full": needs recompute_num_layers. '
            "Fix: add recompute_num_layers: 1",
        ],
        id="recompute",
    ),
    pytest.param(
        {"recompute_num_layers": 2},
        [
            "--config: recompute_num_layers = 2: has no effect without recompute_granularity full. "
            "Fix: remove the line, or write recompute_granularity: full"
        ],
        id="recompute without effect",
    ),
    pytest.param(
        {"overlap_param_gather": True, "overlap_grad_reduce": False},
        [
            "--config: overlap_param_gather = true: needs use_distributed_optimizer and "
            "overlap_grad_reduce. Fix: write false, or set both to true"
        ],
        id="overlap",
    ),
    pytest.param(
        {"gemm_backend": "replay"},
        [
            '--config: gemm_backend = "replay": needs gemm_tuning.replay_file. '
            "Fix: add gemm_tuning: {replay_file: <recorded timings>}"
        ],
        id="replay without a file",
    ),
    pytest.param(
        {"gemm_backend": "replay", "gemm_tuning.replay_file": "none.jsonl"},
        [
            '--config: gemm_tuning.replay_file = "none.jsonl": there is no such file. '
            "Fix: name an existing file"
        ],
        id="replay with a missing file",
    ),
    pytest.param(
        {"gemm_backend": "hipblaslt"},
        [
            '--config: gemm_backend = "hipblaslt": does not run on platform cpu. Fix: write cpu',
        ],
        id="backend",
    ),
    pytest.param(
        {"container": {"runtime": "docker"}},
        ["--config: container.image: is required with a container runtime. Fix: name the image"],
        id="container",
    ),
    pytest.param(
        {"container": {"runtime": "apptainer", "image": "--writable", "privileged": True}},
        [
            '--config: container.image = "--writable": is an option, not an image. '
            "Fix: name the image",
            "--config: container.privileged = true: means nothing to apptainer. Fix: write false",
        ],
        id="container-option",
    ),
    pytest.param(
        {"container": {"runtime": "podman", "image": "x", "mounts": ["data"]}},
        [
            "--config: container.mounts = [\"data\"]: 'data' is not an absolute path. "
            "Fix: write /source or /source:/target",
        ],
        id="container-mounts",
    ),
    pytest.param(
        {"slurm": {"extra": "--nice=3 --time=5"}},
        ['--config: slurm.extra = "--nice=3 --time=5": holds --time=5. Fix: say it by slurm.time'],
        id="an option for sbatch that is said elsewhere",
    ),
    pytest.param(
        {"slurm": {"extra": "--comment='a"}},
        [
            '--config: slurm.extra = "--comment=\'a": no closing quotation. '
            "Fix: close the quotation mark"
        ],
        id="an open quotation mark",
    ),
    pytest.param(
        {"keep_last": 2, "keep_every": 120},
        [
            "--config: keep_every = 120: is no multiple of save_interval 50: nothing is saved "
            "there. Fix: write 100"
        ],
        id="keep_every between two saves",
    ),
    pytest.param(
        {"keep_every": 100},
        [
            "--config: keep_every = 100: keep_last is null, which keeps all. "
            "Fix: set keep_last as well"
        ],
        id="keep_every without keep_last",
    ),
    pytest.param(
        {"lr": "1e-x"},
        ['--config: lr = "1e-x": must be a number. Fix: write a number'],
        id="wrong type on the command line",
    ),
    pytest.param(
        {"data_version": 1.1},
        [
            "--config: data_version = 1.1: must be text. Fix: Snakemake reads a number here, also "
            'in quotes; write it in quotes: "1.1", into the file'
        ],
        id="number for text on the command line",
    ),
]


@pytest.mark.fault(
    31,
    32,
    injected="ranks, batches and heads that do not divide",
    observed="one line before anything runs",
)
@pytest.mark.parametrize(("overrides", "messages"), COMBINATIONS)
def test_keys_that_do_not_go_together(
    root: Root, overrides: dict[str, Any], messages: list[str]
) -> None:
    assert lines(root, **overrides) == messages


def test_every_mistake_of_every_file_at_once(root: Root) -> None:
    root.edit("num_layers: 4", "num_layers: four", MODEL)
    root.edit("gemm_backend: cpu", "gemm_backend: gpu", CPU)
    root.edit("lr: 3.0e-3", "lr: 1e-4")
    root.edit("dataset: demo\n", "dataset_: demo\n")
    root.edit("global_batch_size: 16", "global_batch_size: 20")
    root.edit("eval_iters: 4", "eval_iters: -4")
    assert [line.partition(" = ")[0].partition(": required")[0] for line in lines(root, bf=1)] == [
        f"{MODEL}:3: num_layers",
        f"{CPU}:7: gemm_backend",
        "configs/x.yaml:3: dataset_",
        "configs/x.yaml:12: lr",
        "configs/x.yaml:18: eval_iters",
        "--config: bf",
        "configs/x.yaml: dataset",
        "configs/x.yaml:10: global_batch_size",
    ]


def test_a_key_in_the_wrong_kind_of_file(root: Root) -> None:
    root.edit("num_layers: 4", "num_layers: 4\nlr: 1.0\nplatform: cpu", MODEL)
    root.edit("gemm_backend: cpu", "gemm_backend: cpu\nhidden_size: 64", CPU)
    assert lines(root) == [
        f"{MODEL}:4: lr = 1.0: does not belong in a model file. "
        "Fix: move it to configs/<experiment>.yaml",
        f'{MODEL}:5: platform = "cpu": does not belong in a model file. '
        "Fix: move it to configs/hardware/<name>.yaml or configs/<experiment>.yaml",
        f"{CPU}:8: hidden_size = 64: does not belong in a hardware file. "
        "Fix: move it to configs/models/<model>.yaml or configs/<experiment>.yaml",
    ]


def test_an_unknown_experiment(root: Root) -> None:
    root.write("", "configs/llama3_8B.yaml")
    with pytest.raises(ConfigError, match=r'no experiment "llama_8B".*did you mean llama3_8B\?'):
        load("llama_8B", root=root.path)


def test_a_hostile_name_of_an_experiment(root: Root) -> None:
    root.write("", "configs/a; touch pwned.yaml")
    with pytest.raises(ConfigError) as caught:
        experiments(root.path)
    assert str(caught.value).startswith(
        'configs/a; touch pwned.yaml = "a; touch pwned": is not a name'
    )
    with pytest.raises(ConfigError, match="no experiment"):
        load("../configs/x", root=root.path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "configs/x.yaml:2: not YAML: did not find expected node content"),
        ("- a", "configs/x.yaml:1: is a list"),
        ("text", "configs/x.yaml:1: is not a mapping"),
        ("a: 1\n---\nb: 1", "configs/x.yaml:2: holds a second document"),
        ("a: " + "[" * 200_000, "configs/x.yaml:1: a: is nested deeper than 16 levels"),
        ("a: \x00", "configs/x.yaml"),
    ],
    ids=["torn", "list", "text", "two documents", "deep", "control character"],
)
def test_a_file_that_is_no_mapping(root: Root, text: str, message: str) -> None:
    root.write(text)
    assert lines(root)[0].startswith(message)


def test_a_model_that_cannot_fit(root: Root) -> None:
    root.edit("model: llama3_8B_tiny", "model: llama3_8B")
    root.edit("hardware: cpu", "hardware: h100")
    root.edit("global_batch_size: 16", "global_batch_size: 32")
    (found,) = lines(root, bf16=True, use_distributed_optimizer=False)
    assert re.fullmatch(
        re.escape(
            "configs/hardware/h100.yaml:6: device_memory_gib = 79.6: 8.03e9 parameters at TP 1, "
            "PP 1, DP 8 take # GiB per rank (weights 15.0, gradients 29.9, optimizer 89.7, "
            "activations #, reserve #); a device of h100 has 79.6. Fix: write "
            "use_distributed_optimizer: true (# GiB), or name other hardware"
        ).replace(r"\#", r"\d+\.\d"),
        found,
    )
    load("x", {"bf16": True, "use_distributed_optimizer": True}, root=root.path)


def test_a_model_that_cannot_fit_into_this_machine(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("primus.config.memory.this_machine_gib", lambda: 16.0)
    root.edit("model: llama3_8B_tiny", "model: llama3_8B")
    (found,) = lines(root)
    assert found.startswith(
        "configs/x.yaml: device_memory_gib: 8.03e9 parameters at TP 1, PP 1, DP 2 take "
    )
    assert found.endswith(
        "; each rank on this machine has 8. Fix: no layout fits; name other hardware, or write the "
        "memory of the nodes"
    )
    load("x", root=root.path, stages=("shapes",))
    load("x", {"device_memory_gib": 256}, root=root.path)


def test_files_are_looked_for_only_by_the_stages_that_read_them(root: Root) -> None:
    (root.path / "corpus/a.txt").unlink()
    load("x", root=root.path, stages=("shapes", "tune"))
    assert len(lines(root)) == 2


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("./tokenizers/mine", "there is no such directory. Fix: did you mean tokenizers/min2?"),
        ("/nowhere/at/all", "there is no such directory. Fix: name one that is there"),
        ("~/tokenizer", "'~' is not expanded in a configuration. Fix: write the absolute path"),
        ("./corpus/a.txt", "is a file, and a directory is wanted. Fix: name the directory that"),
        ("../tokenizer", "climbs out of the root by '..'. Fix: write the absolute path"),
        ("tokenizers/mine", ""),
        ("gpt2", ""),
        ("./tokenizers/min2", ""),
    ],
)
def test_a_path_of_a_tokenizer_leads_to_a_directory(root: Root, value: str, said: str) -> None:
    (root.path / "tokenizers/min2").mkdir(parents=True)
    root.edit("tokenizer_data_path: [corpus/*.txt]\n", f"tokenizer_model: {value}\n")
    root.edit("tokenizer_vocab_size: 2048\n", "")
    if not said:
        load("x", root=root.path)
        return
    (line,) = lines(root)
    assert line.startswith(f'configs/x.yaml:5: tokenizer_model = "{value}": {said}')
    if ".." not in value:
        load("x", root=root.path, stages=("shapes",))
