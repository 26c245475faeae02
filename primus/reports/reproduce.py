"""The commands that make the same run again."""

from __future__ import annotations

import shlex

from primus.reports.inputs import Inputs


def reproduce_commands(inputs: Inputs, overrides: dict[str, str]) -> list[str]:
    """Check out the code that trained the run, then ask for the same target.

    Args:
        overrides: `key: value` of the run's command line, as `--config` took them.
    """
    commit = inputs.train.environment.code_commit
    target = f"snakemake train_{inputs.train.experiment}"
    if overrides:
        pairs = (f"{name}={value}" for name, value in sorted(overrides.items()))
        target += " --config " + " ".join(shlex.quote(pair) for pair in pairs)
    checkout = [f"git checkout {shlex.quote(commit)}"] if commit else []
    return [*checkout, target]
