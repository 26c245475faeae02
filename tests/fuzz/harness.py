"""Every parser of outside files under atheris, which follows the branches that its inputs reach.

    make fuzz SECONDS=600               all of them, the time divided among them
    python tests/fuzz/harness.py NAME --seconds 60 --corpus DIRECTORY

Inputs that reach something new stay in the corpus; one that gives a traceback, takes more than ten
seconds or 2 GiB ends the parser's turn and is kept beside it. A find belongs into the tests of
tests/unit/test_fuzz_*.py, which look at the same parsers without atheris.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import atheris

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / name) for name in ("unit", "config"))]

with warnings.catch_warnings(), atheris.instrument_imports(include=["primus"]):
    warnings.simplefilter("ignore")
    import test_fuzz_files as files
    import test_fuzz_lines as lines
    from config_root import EXPERIMENT, Root
    from damage import LONGEST_MESSAGE, OURS, manifest
    from primus_files import BASE, MODEL
    from primus_files import EXPERIMENT as OF_PRIMUS

    from primus import import_config
    from primus.artifacts.manifest import Manifest
    from primus.config.load import load
    from primus.config.yaml_file import parse_yaml
    from primus.files import parse_json
    from primus.gemm.hipblaslt.output import parse_output
    from primus.gemm.shapes import read_shapes
    from primus.gemm.tuned import TunedResult

KINDS: list[type[Manifest]] = sorted(files.MANIFESTS, key=lambda kind: kind.kind)


class Parser(NamedTuple):
    """One kind of file.

    Attributes:
        seeds: whole files, from which the search starts.
        read: reads a file at a path of this `name`.
    """

    seeds: list[bytes]
    read: Callable[[Path], Any]
    name: str = "input"


def read_manifest(path: Path) -> None:
    """The first byte chooses the kind."""
    content = path.read_bytes()
    if content:
        KINDS[content[0] % len(KINDS)].from_content(parse_json(content[1:]), "manifest.json")


def read_json_refused(path: Path) -> None:
    """As above; what is no JSON is a ValueError, which every caller answers."""
    try:
        read_manifest(path)
    except ValueError:
        return


def read_experiment(path: Path) -> None:
    """One experiment of a small root, whose other files are as they should be."""
    load("input", root=path.parents[1], stages=())


def read_primus(path: Path) -> None:
    """An experiment of AMD's Primus, its model's file beside it."""
    import_config.main([str(path), "--force", "--allow-unknown", "--output", f"{path}.out"])


PARSERS: dict[str, Parser] = {
    "yaml": Parser([EXPERIMENT.encode()], lambda path: parse_yaml(path.read_bytes(), "x.yaml")),
    "config": Parser([EXPERIMENT.encode()], read_experiment, "configs/input.yaml"),
    "primus-yaml": Parser([OF_PRIMUS.encode()], read_primus, "theirs/exp.yaml"),
    "manifest": Parser(
        [bytes([number]) + manifest(kind) for number, kind in enumerate(KINDS)], read_json_refused
    ),
    "jsonl": Parser([lines.JSONL], lines.read_text, "x.jsonl"),
    "txt": Parser([lines.PLAIN], lines.read_text, "x.txt"),
    "bench-output": Parser(
        [lines.bench_output.survey().encode()],
        lambda path: parse_output(path.read_text(errors="replace").splitlines()),
    ),
    "shapes": Parser([files.SHAPES], read_shapes, "shapes.jsonl"),
    "tuned": Parser([files.TUNED], TunedResult.load, "tuned.jsonl"),
    **{
        f"dump-{number}": Parser(["".join(f"{x}\n" for x in texts).encode()], read)
        for number, (texts, read) in enumerate(lines.DUMPS.values())
    },
}


def prepare(directory: Path, parser: Parser) -> Path:
    """Where the input of each try is written, with what must lie beside it."""
    Root(directory)
    theirs = directory / "theirs"
    theirs.mkdir()
    (theirs / "llama3_8B_tiny.yaml").write_text(MODEL)
    (theirs / "own_base.yaml").write_text(BASE)
    path = directory / parser.name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def fuzz(name: str, seconds: int, corpus: Path) -> None:
    """Look for inputs of one parser; does not return."""
    parser = PARSERS[name]
    # In memory, where there is such a place: some ten thousand files a second are written.
    shared = Path("/dev/shm")  # noqa: S108
    directory = Path(tempfile.mkdtemp(dir=shared if os.access(shared, os.W_OK) else None))
    os.chdir(directory)
    path = prepare(directory, parser)
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(parser.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # what parsers print is not looked at

    def once(content: bytes) -> None:
        path.write_bytes(content)
        try:
            parser.read(path)
        except OURS as error:
            said = str(error)
            assert len(said) < LONGEST_MESSAGE, f"a message of {len(said)} characters"
            assert "\x1b" not in said
            assert "\x00" not in said

    options = [f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=2048"]
    options += ["-max_len=20000", f"-artifact_prefix={corpus.parent}/found-{name}-"]
    atheris.Setup([sys.argv[0], *options, "-print_final_stats=1", str(corpus)], once)
    atheris.Fuzz()


def main() -> None:
    """One parser here, or each in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", choices=sorted(PARSERS), help="default: all")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, required=True, help="a directory for each parser")
    args = parser.parse_args()
    corpus = args.corpus.absolute()
    if args.name:
        fuzz(args.name, args.seconds, corpus / args.name)
    share = max(1, args.seconds // len(PARSERS))
    failed = []
    for name in PARSERS:
        command = [sys.executable, __file__, name, f"--seconds={share}", f"--corpus={corpus}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        tries = re.search(r"executed_units: +(\d+)", done.stderr)
        count = tries[1] if tries else "no"
        print(f"{name}: {count} tries, status {done.returncode}", flush=True)
        if done.returncode != 0:
            failed.append(name)
            print("\n".join(done.stderr.splitlines()[-40:]), flush=True)
    if failed:
        raise SystemExit(f"found something in: {', '.join(failed)}; inputs: {corpus}/found-*")


if __name__ == "__main__":
    main()
