"""Initial weights: their spread, and that no layout, padding or neighbour changes them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from trainer_tiny import tiny, tiny_deepseek

from primus.trainer import parallel
from primus.trainer.initialize import draw_weights
from primus.trainer.model import model_config

pytestmark = pytest.mark.usefixtures("single_rank", "eager")


def weights(settings: Any) -> dict[str, Tensor]:
    """A fresh model's parameters."""
    (chunk,) = parallel.build_chunks(settings, model_config(settings))
    return {name: parameter.detach() for name, parameter in chunk.named_parameters()}


@pytest.mark.parametrize("family", [None, "deepseek_v3"])
def test_the_spread_is_that_of_upstream(family: str | None) -> None:
    changes = {"init_method_std": 0.03, "hidden_size": 128}
    settings = tiny_deepseek(family, **changes) if family else tiny(**changes)
    outputs = 0
    for name, weight in weights(settings).items():
        if weight.ndim == 1:
            assert torch.equal(weight, torch.ones_like(weight)), name
            continue
        output = "linear_proj" in name or "linear_fc2" in name
        outputs += output
        wanted = 0.03 / math.sqrt(2 * settings.num_layers) if output else 0.03
        # Eight standard errors of a sample's spread and mean.
        slack = 8 / math.sqrt(weight.numel())
        assert float(weight.std()) == pytest.approx(wanted, rel=slack), name
        assert abs(float(weight.mean())) < wanted * slack, name
    assert outputs > 0


def test_the_seed_alone_decides() -> None:
    first = weights(tiny())
    torch.manual_seed(8)
    second = weights(tiny())
    other = weights(tiny(seed=5))
    matrices = [name for name, weight in first.items() if weight.ndim > 1]
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in matrices)


def test_no_two_matrices_are_alike() -> None:
    drawn = [w for w in weights(tiny_deepseek("deepseek_v3")).values() if w.ndim > 1]
    starts = {tuple(weight.flatten()[:4].tolist()) for weight in drawn}
    assert len(starts) == len(drawn) > 20


def test_padding_changes_no_row() -> None:
    plain, padded = weights(tiny()), weights(tiny(make_vocab_size_divisible_by=300))
    for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        assert padded[name].shape[0] == 600
        assert torch.equal(padded[name][:512], plain[name]), name
        assert not padded[name][512:].any(), name


def test_half_precision_is_rounded_from_the_same_numbers() -> None:
    whole, half = weights(tiny()), weights(tiny(bf16=True))
    for name, weight in half.items():
        assert torch.equal(weight, whole[name.removeprefix("module.")].bfloat16()), name


def test_a_matrix_that_checkpoints_do_not_reach_is_an_error() -> None:
    (chunk,) = parallel.build_chunks(tiny(), model_config(tiny()))
    state = chunk.sharded_state_dict

    def without_one(**arguments: Any) -> dict[str, Any]:
        return {k: v for k, v in state(**arguments).items() if k != "output_layer.weight"}

    chunk.sharded_state_dict = without_one
    with pytest.raises(RuntimeError, match=r"not initialised: output_layer.weight"):
        draw_weights(tiny(), chunk)
