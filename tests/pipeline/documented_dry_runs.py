"""Dry runs of many command lines of Snakemake, each in a fork of one process that has imported it.

    echo '[["snakemake", "train_x"]]' | python documented_dry_runs.py

One JSON object a line for each: {"status", "output"}.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback

import snakemake.cli

import primus.config.pipeline
import primus.reports.comparison.asked  # noqa: F401  # imported for the forks


def dry_run(words: list[str]) -> int:
    """As that command line with --dry-run; the exit status."""
    sys.argv[:] = [words[0], "--dry-run", *words[1:]]
    try:
        snakemake.cli.main(sys.argv[1:])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    for words in json.load(sys.stdin):
        with tempfile.TemporaryFile() as output:
            child = os.fork()
            if child == 0:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                status = dry_run(words)
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            output.seek(0)
            text = output.read().decode(errors="replace")
        print(json.dumps({"status": status, "output": text}), file=answers, flush=True)


if __name__ == "__main__":
    main()
