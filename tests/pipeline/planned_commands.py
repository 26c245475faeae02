"""Plan targets with Snakemake's own API and print every job as JSON; one dry run for each set.

    echo '[{"targets": ["train_x"], "config": {}, "profile": false}]' | python planned_commands.py

The sets come by standard input: one argument holds 128 KiB at most. Each is planned in a child of
this process: Snakemake is imported once.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import snakemake.api as api
from snakemake.cli import parse_quietness
from snakemake.resources import Resources

_FIELD = re.compile(r"\{([^{}:]+):q\}")


def expected(job: Any) -> list[str]:
    """The words of a job's command: those of the rule's text, each field one word per value."""
    spaces = {
        name: getattr(job, name) for name in ("input", "output", "params", "log", "wildcards")
    }
    words: list[str] = []
    for word in job.rule.shellcmd.split():
        if match := _FIELD.fullmatch(word):
            first, *rest = match[1].split(".")
            value = spaces[first]
            for name in rest:
                value = getattr(value, name)
            words += [value] if isinstance(value, str) else [str(item) for item in value]
        else:
            words.append(word)
    return words


def planned(targets: list[str], config: dict[str, Any], profile: bool) -> dict[str, Any]:
    """Every job of a dry run, and the rules that have a command."""
    resources = {"cores": 2} if not profile else {"nodes": 4}
    if profile:
        resources["default_resources"] = Resources.parse(
            ["mem_mb=16000", "runtime=1440"], defaults="bare", allow_expressions=False
        )
    output = api.OutputSettings(dryrun=True, printshellcmds=True, quiet=parse_quietness(["all"]))
    with api.SnakemakeApi(output) as made:
        workflow = made.workflow(
            resource_settings=api.ResourceSettings(**resources),
            config_settings=api.ConfigSettings(config=config),
            snakefile=Path("Snakefile"),
        )
        dag = workflow.dag(api.DAGSettings(targets=set(targets)))
        dag.execute_workflow(executor="dryrun")
        inner = workflow._workflow
        return {
            "rules": [rule.name for rule in inner.rules if rule.shellcmd],
            "jobs": [
                {
                    "rule": job.rule.name,
                    "command": job.shellcmd,
                    "expected": expected(job),
                    "resources": {name: str(value) for name, value in job.resources.items()},
                }
                for job in inner.dag.jobs
                if job.rule.shellcmd
            ],
        }


def main() -> None:
    for number, asked in enumerate(json.load(sys.stdin)):
        sys.argv[1:] = ["--dry-run", *asked["targets"]]
        child = os.fork()
        if child == 0:
            Path(f"planned-{number}.json").write_text(json.dumps(planned(**asked)))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
