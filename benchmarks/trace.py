"""How long it takes to trace the GEMM shapes of the full-size models, without memory or device.

One process for all, as one line each: the import of torch and Megatron-core, then each experiment
in configs/ that is not a tiny sibling, at its own parallel layout.

    python -m benchmarks.trace
    python -m benchmarks.trace deepseek_v3 llama3_70B
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from primus.config.frozen import StageSettings
from primus.config.identity import identities
from primus.config.load import experiments, load
from primus.shapes_dump import complete, trace

ROOT = Path(__file__).resolve().parents[1]


def settings_of(experiment: str) -> StageSettings:
    """What the shapes stage of an experiment would read."""
    key = identities(load(experiment, root=ROOT, stages=()).settings)["shapes"]
    values = dict(key.identity) | dict(key.options)
    return complete(StageSettings.of("shapes", values, experiment=experiment))


def main(argv: Sequence[str] | None = None) -> None:
    """Trace and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.trace",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiment", nargs="*", help="default: all full-size experiments")
    args = parser.parse_args(argv)
    full_size = [name for name in experiments(ROOT) if not name.endswith("_tiny")]
    started = time.perf_counter()
    import_everything()
    print(f"{'import':<20} {time.perf_counter() - started:6.1f} s")
    for name in args.experiment or full_size:
        settings = settings_of(name)
        before = time.perf_counter()
        calls = trace(settings).calls
        seconds = time.perf_counter() - before
        print(
            f"{name:<20} {seconds:6.1f} s {sum(calls.values()):>7} GEMMs {len(calls):>4} problems"
        )
    print(f"{'together':<20} {time.perf_counter() - started:6.1f} s")


def import_everything() -> None:
    """What a trace imports."""
    from primus.trainer.platform import install

    install("cpu")
    import primus.trainer.dry_steps  # noqa: F401


if __name__ == "__main__":
    main()
