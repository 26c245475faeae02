"""`--config` on the command line of Snakemake and of the commands for people."""

from __future__ import annotations

import pytest

from primus.config.arguments import overrides, refuse_two
from primus.errors import ConfigError
from primus.explain import command_parser


@pytest.mark.parametrize(
    "words",
    [
        ["train_x", "--config", "lr=1", "--config", "seed=5"],
        ["train_x", "-C", "lr=1", "--config=seed=5"],
        ["-Clr=1", "-C", "seed=5"],
    ],
)
def test_a_second_config_is_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"--config: is given more than once, .*Fix: write one"):
        refuse_two(words)


def test_one_config_with_much_in_it_is_none_too_many() -> None:
    refuse_two(["-n", "train_x", "--config", "lr=1", "seed=5", "--configfile", "a.yaml", "-c", "2"])


def test_commands_take_every_config() -> None:
    args = command_parser().parse_args(["x", "--config", "lr=1", "nodes=2", "--config", "seed=5"])
    assert overrides(args.config) == {"lr": "1", "nodes": "2", "seed": "5"}
