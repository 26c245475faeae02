"""Tune the GEMMs of an experiment: shapes.jsonl in, tuned.jsonl out.

Times every problem once per machine and software stack, into a store that experiments share. The
store is shown and moved with --list, --export and --import; `--list --help` has their arguments.

Examples:
    python -m primus.tune --settings tune.json --shapes shapes.jsonl --output tuned.jsonl
    python -m primus.tune --verify --settings S.json --shapes shapes.jsonl --tuned tuned.jsonl
    python -m primus.tune --list
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from primus import tune_store
from primus.artifacts.timing import stage_time
from primus.command_line import Command
from primus.config.frozen import StageSettings, add_settings_arguments, load_settings
from primus.container.run import enter
from primus.errors import run_main


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage.

    Raises:
        UnavailableError, ArtifactError: no backend here; an input file is missing or damaged.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if tune_store.is_asked_for(arguments):
        tune_store.main(arguments)
        return
    parser = command_parser()
    args = parser.parse_args(arguments)
    if (args.tuned if args.verify else args.output) is None:
        parser.error(f"--{'tuned' if args.verify else 'output'} is missing")
    if args.verify:
        from primus.tune_verify import verify

        verify(args.settings, args.options, args.shapes, args.tuned)
        return
    settings = load_settings(args, "tune")
    enter(settings, arguments)
    with stage_time("tune", args.output):
        if told := _tune(settings, args.shapes, args.output):
            print(told, flush=True)


def command_parser() -> Command:
    """The arguments of the stage; those about the store are `tune_store.command_parser`'s."""
    parser = Command("primus.tune", __doc__)
    add_settings_arguments(parser)
    parser.add_argument("--shapes", type=Path, required=True, help="shapes.jsonl of the experiment")
    parser.add_argument("--output", type=Path, help="tuned.jsonl to write")
    parser.add_argument("--verify", action="store_true", help="was --tuned applied?")
    parser.add_argument("--tuned", type=Path, help="tuned.jsonl to verify")
    return parser


def _tune(settings: StageSettings, shapes_path: Path, output: Path) -> str:
    from primus.files import sha256_file
    from primus.gemm.backends import load_backend
    from primus.gemm.backends.base import BackendSpec
    from primus.gemm.search import SearchSettings, tune
    from primus.gemm.shapes import read_shapes
    from primus.gemm.store import Origin
    from primus.gemm.summary import summary
    from primus.gemm.tuned import write_tuned

    started = time.monotonic()
    keys = settings.gemm_tuning
    spec = BackendSpec(
        name=settings.gemm_backend,
        threads=settings.threads_per_rank,
        replay_file=keys.replay_file,
        workspace_mib=keys.workspace_mib,
    )
    backend = load_backend(spec)
    search = SearchSettings.of(settings, backend.min_gain)
    here = Origin.here(settings.experiment, settings.key)
    shapes = read_shapes(shapes_path)[1]
    result = tune(shapes, spec, search, keys.store, enabled=keys.enabled, origin=here)
    header, rows = write_tuned(output, result, search, sha256_file(shapes_path))
    backend.write(header, rows, output.parent)
    print(summary(header, rows, result.measured_on, reused=result.reused), flush=True)
    if keys.step_rounds == 0:
        return ""
    from primus.tune_steps import whole_steps

    return whole_steps(settings, shapes_path, output, deadline=started + search.budget_seconds)


if __name__ == "__main__":
    run_main(main)
