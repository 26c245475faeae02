"""Make a tuned result ready on this node: the library's own file, and the ranks' environment.

    python -m primus.gemm.activate output/runs/mine/0123456789ab/tuned.jsonl 1

A process of its own, because a library that is asked what it is may keep memory of a device; one
per node in a job of several. The last line printed is the environment as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from primus.container.run import added, step_options
from primus.container.spec import Container, python
from primus.errors import ArtifactError, UserError, run_main
from primus.launch import one_per_node


def main(argv: Sequence[str] | None = None) -> None:
    """Activate and print."""
    from primus.gemm.applied import activate

    parser = argparse.ArgumentParser(prog="python -m primus.gemm.activate")
    parser.add_argument("tuned", type=Path)
    parser.add_argument("threads", type=int)
    args = parser.parse_args(argv)
    print(json.dumps(dict(activate(args.tuned, threads=args.threads))), flush=True)


def activated(
    tuned: Path, *, threads: int, nodes: int = 1, container: Container | None = None
) -> dict[str, str]:
    """What `primus.gemm.applied.activate` gives, found by a process that has ended.

    Args:
        nodes: of the SLURM job; each makes itself ready, and all must come to the same.
        container: of the ranks; None: none.

    Raises:
        UserError, ArtifactError: as there; the text is the same.
        ArtifactError: also where nodes want different variables.
    """
    command = python(container, ["-m", "primus.gemm.activate", str(tuned), str(threads)])
    variables = dict(os.environ)
    if container is not None and container.is_step:
        variables |= added(container)
        command = [*one_per_node(nodes), *step_options(container, variables), *command]
    elif nodes > 1 and "SLURM_JOB_ID" in os.environ:
        command = [*one_per_node(nodes), *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    if done.returncode != 0:
        lines = done.stderr.splitlines()
        told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        kind = UserError if done.returncode == UserError.exit_code else ArtifactError
        raise kind("\n".join(told) or f"{tuned}: cannot be activated:\n{done.stderr}")
    lines = done.stdout.splitlines()
    found = sorted({line for line in lines if line.startswith("{")})
    for line in dict.fromkeys(line for line in lines if not line.startswith("{")):
        print(line, flush=True)
    if len(found) != 1:
        raise ArtifactError(
            f"{tuned}: nodes of this job want different variables: {' or '.join(found)}. "
            "Fix: give all nodes the same software and TMPDIR"
        )
    wanted: dict[str, str] = json.loads(found[0])
    return wanted


if __name__ == "__main__":
    run_main(main)
