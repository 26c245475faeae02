"""What transformer-engine's layers are told. A FAKE stands in for the library, which needs a GPU:
see fake_transformer_engine.py. That the layers compute the right thing is not tested here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from trainer_tiny import REPOSITORY, tiny

from primus.config.frozen import StageSettings
from primus.errors import UnavailableError
from primus.trainer.model import use_transformer_engine

GPU = {"hardware": "h100", "nproc_per_node": 1, "bf16": True}


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    """What the fake was asked for, in a process of its own: upstream looks for it when imported."""
    program = Path(__file__).with_name("fake_transformer_engine.py")
    done = subprocess.run(
        [sys.executable, str(program)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def layers(seen: dict[str, Any], model: str, name: str) -> list[dict[str, Any]]:
    return [told for layer, told in seen["models"][model]["layers"] if layer == name]


def test_it_is_chosen_where_it_is_installed_and_only_there(seen: dict[str, Any]) -> None:
    models = seen["models"]
    assert models["llama auto"]["layers"]
    assert models["llama auto"] == models["llama transformer_engine"]
    assert models["llama local"]["layers"] == []
    assert models["v3 local"]["layers"] == []


def test_a_llama_layer(seen: dict[str, Any]) -> None:
    settings = tiny(**GPU)
    counts = Counter(name for name, _ in seen["models"]["llama auto"]["layers"])
    assert counts == {
        "TELayerNormColumnParallelLinear": 2 * settings.num_layers,
        "TERowParallelLinear": 2 * settings.num_layers,
        "TEDotProductAttention": settings.num_layers,
        "RMSNorm": 1,
    }
    for told in layers(seen, "llama auto", "TELayerNormColumnParallelLinear"):
        assert told["normalization"] == "RMSNorm"
        assert told["eps"] == settings.norm_epsilon
        assert (told["bias"], told["params_dtype"]) == (False, "torch.bfloat16")
        assert not told["fuse_wgrad_accumulation"]
    attention = layers(seen, "llama auto", "TEDotProductAttention")[0]
    assert attention["num_attention_heads"] == settings.num_attention_heads
    assert attention["num_gqa_groups"] == settings.num_query_groups
    assert attention["kv_channels"] == settings.kv_channels
    assert attention["attn_mask_type"] == "causal"


def test_its_layers_add_weight_gradients_and_fuse_what_lies_between(seen: dict[str, Any]) -> None:
    """The rotation only where the library has a kernel for it, which the fake has not."""
    settings, models = tiny(**GPU), seen["models"]
    assert models["llama auto"]["adds"] == [True] * 4 * settings.num_layers
    assert len(models["v3 auto"]["adds"]) > 4
    assert all(models["v3 auto"]["adds"])
    assert models["llama auto"]["fusions"] == models["v3 auto"]["fusions"] == [True, False]
    assert models["llama local"]["adds"] == []
    assert models["llama local"]["fusions"] == [False, False]


def test_the_output_layer_is_ours(seen: dict[str, Any]) -> None:
    assert {m["output layer"] for m in seen["models"].values()} == {"primus.trainer.linear"}


def test_deepseek_v3_has_grouped_gemms_and_two_sizes_of_heads(seen: dict[str, Any]) -> None:
    experts = layers(seen, "v3 auto", "TEColumnParallelGroupedLinear")
    # One layer with experts, and that of multi-token prediction.
    assert [(told["num_gemms"], told["in_features"]) for told in experts] == [(8, 64)] * 2
    heads = {told["kv_channels"] for told in layers(seen, "v3 auto", "TEDotProductAttention")}
    assert "(24, 12)" in heads
    assert seen["models"]["v3 auto"]["grouped"]


@pytest.mark.parametrize("model", ["llama", "v3"])
def test_checkpoints_and_initial_weights_are_those_of_the_local_layers(
    seen: dict[str, Any], model: str
) -> None:
    ours, theirs = (seen["models"][f"{model} {impl}"] for impl in ("local", "auto"))
    for what in ("parameters", "tensors", "sums"):
        assert theirs[what] == ours[what], what


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("delayed", "TEDelayedScaling"),
        ("tensorwise", "Float8CurrentScaling"),
        ("blockwise", "Float8BlockScaling"),
        ("mxfp8", "MXFP8BlockScaling"),
    ],
)
@pytest.mark.parametrize("fp8", ["e4m3", "hybrid"])
def test_float8_recipes(seen: dict[str, Any], fp8: str, recipe: str, name: str) -> None:
    made, told = seen["recipes"][f"{fp8} {recipe}"]
    assert made == name
    assert told["fp8_format"] == fp8.upper()


@pytest.mark.skipif(find_spec("transformer_engine") is not None, reason="the library is here")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer_impl": "transformer_engine"}, "transformer_impl = transformer_engine: "),
        ({"fp8": "hybrid"}, "fp8 = hybrid: "),
    ],
)
def test_without_the_library_the_extra_is_named(changes: dict[str, Any], message: str) -> None:
    settings: StageSettings = tiny(**GPU, **changes)
    with pytest.raises(UnavailableError, match=rf"{message}.*not installed.*extra 'gpu'"):
        use_transformer_engine(settings)
