"""Which sweeps there are, and which a call of Snakemake is about. Every start imports this."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

from primus.config.layers import is_name, names_in

# The target of each file in it is `sweep_<name>`.
SWEEPS = "configs/sweeps"


def sweeps(root: Path = Path()) -> list[str]:
    """Every sweep that can become a target."""
    return [name for name in names_in(root / SWEEPS) if is_name(name)]


def take(config: MutableMapping[str, Any], words: Sequence[str]) -> list[str]:
    """Take `sweep=a,b` out of `config`: the sweeps among whose points a job's run is.

    Args:
        config: Snakemake's, changed in place: what stays is of the experiments.
        words: Snakemake's command line. Where it asks for no file, `sweep` stays, and is a key
            that no experiment knows.
    """
    if not any(word.startswith(("output/", "--target-jobs")) for word in words):
        return []
    return [name for name in str(config.pop("sweep", "")).split(",") if name]
