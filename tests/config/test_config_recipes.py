"""A recipe holds what experiments share; it lies below the experiment and above the hardware."""

from __future__ import annotations

import pytest
from config_root import Root

from primus.config.identity import identities
from primus.config.load import load
from primus.errors import ConfigError

SHARED = "lr: 3.0e-3\nmin_lr: 3.0e-4\n"


@pytest.fixture
def shared(root: Root) -> Root:
    """The experiment `x` with two of its keys moved into a recipe."""
    (root.path / "configs/recipes").mkdir()
    root.write(SHARED, "configs/recipes/mine.yaml")
    root.edit(SHARED, "recipe: mine\n")
    return root


def message(root: Root) -> str:
    with pytest.raises(ConfigError) as caught:
        load("x", root=root.path)
    return str(caught.value)


def test_moving_keys_into_a_recipe_changes_no_identity(shared: Root) -> None:
    resolved = load("x", root=shared.path)
    assert resolved.source("lr") == "configs/recipes/mine.yaml:1"
    shared.edit("recipe: mine\n", SHARED)
    plain = load("x", root=shared.path)
    assert plain.source("lr").startswith("configs/x.yaml:")
    keys = {stage: made.key for stage, made in identities(resolved.settings).items()}
    assert keys == {stage: made.key for stage, made in identities(plain.settings).items()}


def test_the_experiment_and_the_command_line_win(shared: Root) -> None:
    shared.edit("recipe: mine\n", "recipe: mine\nlr: 2.0e-3\n")
    assert load("x", root=shared.path).settings.lr == 2e-3
    assert load("x", {"lr": 1e-3}, root=shared.path).settings.lr == 1e-3


def test_a_recipe_that_is_not_there(shared: Root) -> None:
    shared.edit("recipe: mine", "recipe: mien")
    assert message(shared) == (
        'configs/x.yaml:12: recipe = "mien": there is no configs/recipes/mien.yaml. '
        "Fix: did you mean mine?"
    )


@pytest.mark.parametrize("line", ["model: llama3_8B", "hardware: cpu", "recipe: mine"])
def test_what_no_recipe_may_say(shared: Root, line: str) -> None:
    shared.write(SHARED + line + "\n", "configs/recipes/mine.yaml")
    found = message(shared)
    assert found.startswith(f"configs/recipes/mine.yaml:3: {line.partition(':')[0]} = ")
    assert "does not belong in a recipe file. Fix: move it to configs/<experiment>.yaml" in found


def test_a_mistake_in_a_recipe_is_named_there(shared: Root) -> None:
    shared.write("lr: 3e-3\nmin_lr: 3.0e-4\n", "configs/recipes/mine.yaml")
    assert message(shared).startswith('configs/recipes/mine.yaml:1: lr = "3e-3": ')
