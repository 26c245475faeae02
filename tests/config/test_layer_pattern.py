"""Which layers hold experts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from primus.config.layer_pattern import expert_layers, parse_pattern


def settings(**values: object) -> SimpleNamespace:
    return SimpleNamespace(**{"num_layers": 4, "num_experts": 8, "moe_layer_freq": 1} | values)


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [
        ("([0]*3+[1]*58)", [0] * 3 + [1] * 58),
        ("[0]+[1]*2", [0, 1, 1]),
        ("[0,1]*2+[1]", [0, 1, 0, 1, 1]),
        ("([1])", [1]),
    ],
)
def test_a_pattern_is_read(pattern: str, layers: list[int]) -> None:
    assert parse_pattern(pattern) == tuple(map(bool, layers))


@pytest.mark.parametrize("pattern", ["", "[2]", "[0]*[1]", "__import__('os')", "[0]*3,[1]"])
def test_anything_else_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="is not a term"):
        parse_pattern(pattern)


def test_a_number_means_every_nth_layer_from_the_first() -> None:
    assert expert_layers(settings(moe_layer_freq=2)) == (True, False, True, False)
    assert expert_layers(settings()) == (True,) * 4


def test_a_dense_model_has_no_expert_layers() -> None:
    assert expert_layers(settings(num_experts=None, moe_layer_freq="[0]*9")) == (False,) * 4


def test_a_pattern_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="lists 9 layers, num_layers is 4"):
        expert_layers(settings(moe_layer_freq="[0]*9"))
