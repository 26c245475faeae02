"""What a rank imports before it can do anything: with Python's collector of garbage, and without.

    python -m benchmarks.start --rounds 11

Seconds of processor time of `import torch` alone, and of all that a rank imports, in processes of
their own that take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence

MODULES = "primus.train_setup", "primus.trainer.loop"
_ALL = (
    "from primus.trainer.platform import install; install('cpu'); import importlib; "
    f"[importlib.import_module(name) for name in {MODULES!r}]"
)
CONTESTANTS = {
    "torch alone": "import torch",
    "all, collecting": _ALL,
    "all, as ranks do": "from primus.quick_imports import quick_imports\n"
    f"with quick_imports():\n    {_ALL}",
}
PROGRAM = "import time\n{body}\nprint(time.process_time())"


def seconds(body: str) -> float:
    """Processor time of a process that runs `body`, its own start included."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM.format(body=body)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout.split()[-1])


def main(argv: Sequence[str] | None = None) -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.start",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args(argv)
    found: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for _ in range(args.rounds):
        for name, body in CONTESTANTS.items():
            found[name].append(seconds(body))
    peer = statistics.median(found["all, collecting"])
    print("| imports | s (min, max) | of all, collecting |\n| --- | --- | ---: |")
    for name, times in found.items():
        middle = statistics.median(times)
        spread = f"{middle:.2f} ({min(times):.2f}, {max(times):.2f})"
        print(f"| {name} | {spread} | {middle / peer:.2f} |")


if __name__ == "__main__":
    main()
