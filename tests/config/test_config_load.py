"""The layers, in order; the environment; the command line."""

from __future__ import annotations

from typing import Any

import pytest
from config_root import Root

from primus.config.load import load
from primus.config.schema.settings import Settings
from primus.errors import ConfigError


def settings(root: Root, **overrides: Any) -> Settings:
    return load("x", overrides, root=root.path).settings


def test_later_layers_win_and_sources_say_so(root: Root) -> None:
    root.edit("lr: 3.0e-3", "lr: 3.0e-3\nnproc_per_node: 1\nvocab_size: 4096")
    resolved = load("x", {"vocab_size": 5000}, root=root.path)
    assert resolved.settings.nproc_per_node == 1
    assert resolved.settings.vocab_size == 5000
    assert resolved.source("nproc_per_node") == "configs/x.yaml:13"
    assert resolved.source("vocab_size") == "--config"
    assert resolved.source("num_layers") == "configs/models/llama3_8B_tiny.yaml:3"
    assert resolved.source("gemm_tuning.budget_minutes") == "configs/x.yaml:24"
    assert resolved.source("gemm_tuning.coverage") == "default"
    assert resolved.source("kv_channels") == "derived"


def test_groups_merge_key_by_key(root: Root) -> None:
    root.edit("lr: 3.0e-3", "lr: 3.0e-3\nenv: {A: one}\npeak_tflops: {bf16: 1.5}")
    found = settings(root, **{"gemm_tuning.coverage": 0.5, "env": {"B": "two"}})
    assert found.gemm_tuning.budget_minutes == 0.5
    assert found.gemm_tuning.coverage == 0.5
    assert found.env == {"A": "one", "B": "two"}
    assert (found.peak_tflops.bf16, found.peak_tflops.fp32) == (1.5, None)


def test_lists_are_replaced(root: Root) -> None:
    (root.path / "corpus/b.txt").write_text("more\n")
    assert settings(root, data_path=["corpus/b.txt"]).data_path == ["corpus/b.txt"]


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train_iters: ${ITERS}", "train_iters", 40),
        ("train_iters: ${NONE:17}", "train_iters", 17),
        ("lr: ${LR}", "lr", 2e-5),
        ("bf16: ${FLAG}", "bf16", True),
        ("lr_decay_iters: ${NONE:null}", "lr_decay_iters", None),
        ("dataset: ${ITERS}", "dataset", "40"),
        ("dataset: set-${WORD}-${NONE:x}", "dataset", "set-demo-x"),
        ("data_path: ['${DIR}/a.txt']", "data_path", ["corpus/a.txt"]),
        ("data_version: ${NONE:}", "data_version", ""),
    ],
)
def test_environment(
    root: Root, monkeypatch: pytest.MonkeyPatch, text: str, key: str, value: Any
) -> None:
    given = {"ITERS": "40", "LR": "2e-5", "FLAG": "true", "WORD": "demo", "DIR": "corpus"}
    for name, content in given.items():
        monkeypatch.setenv(name, content)
    name = text.partition(":")[0]
    kept = [line for line in root.read().splitlines() if not line.startswith(f"{name}:")]
    root.write("\n".join([*kept, text, "min_lr: 0.0" if name == "lr" else ""]))
    if name == "lr":
        root.edit("min_lr: 3.0e-4\n", "")
    if key == "lr_decay_iters":
        value = 200  # derived: as long as train_iters
    assert getattr(settings(root), key) == value


def test_the_environment_alone_changes_nothing(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    before = settings(root)
    for name in Settings.model_fields:
        monkeypatch.setenv(name, "7")
        monkeypatch.setenv(name.upper(), "7")
        monkeypatch.setenv(f"PRIMUS_{name.upper()}", "7")
    assert settings(root) == before


@pytest.mark.parametrize(
    ("given", "key", "value"),
    [
        ({"lr": "1e-3"}, "lr", 1e-3),
        ({"lr": 1}, "lr", 1.0),
        ({"train_iters": "300"}, "train_iters", 300),
        ({"bf16": "true"}, "bf16", True),
        ({"keep_last": "null"}, "keep_last", None),
        ({"keep_last": None}, "keep_last", None),
        ({"split": "90,10,0"}, "split", "90,10,0"),
        ({"data_version": 2}, "data_version", "2"),
        ({"data_path": ["corpus/a.txt"]}, "data_path", ["corpus/a.txt"]),
        ({"data_path": "[corpus/a.txt]"}, "data_path", ["corpus/a.txt"]),
        ({"gemm_tuning": {"enabled": "false"}}, "gemm_tuning.enabled", False),
        ({"gemm_tuning": "{coverage: 1e-1}"}, "gemm_tuning.coverage", 0.1),
        ({"gemm_tuning.coverage": "0.25"}, "gemm_tuning.coverage", 0.25),
    ],
)
def test_command_line(root: Root, given: dict[str, Any], key: str, value: Any) -> None:
    found: Any = settings(root, **given)
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


def test_values_that_follow_from_others(root: Root) -> None:
    found = settings(root, num_query_groups=None, train_iters=77, lr_decay_iters=None)
    assert found.num_query_groups == found.num_attention_heads == 8
    assert found.kv_channels == 16
    assert found.lr_decay_iters == 77
    constant = settings(root, lr_decay_style="constant", lr_decay_iters=None)
    assert constant.lr_decay_iters is None


def test_auto_hardware_becomes_a_name(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("primus.config.layers.detect_hardware", lambda: "mi300x")
    found = settings(root, hardware="auto", global_batch_size=32)
    assert (found.hardware, found.platform, found.nproc_per_node) == ("mi300x", "rocm", 8)


def test_an_unknown_device_is_named(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    from primus.config.machine import UnknownDevice

    def detect() -> str:
        raise UnknownDevice("NVIDIA B200")

    monkeypatch.setattr("primus.config.layers.detect_hardware", detect)
    root.edit("hardware: cpu\n", "")
    with pytest.raises(ConfigError) as caught:
        load("x", root=root.path)
    assert str(caught.value) == (
        'configs/x.yaml: hardware = "auto": this machine has a device that no file describes: '
        "NVIDIA B200. Fix: name the nearest one of cpu, h100, h200, mi300x, or add "
        "configs/hardware/<name>.yaml"
    )
