"""Sample text from a model: of a run, a checkpoint, or a Hugging Face directory.

RUN is an experiment (its newest run), experiment/key, the path of a run, of one of its checkpoints,
or of a Hugging Face directory. A run is asked through its export; where there is none, its newest
good checkpoint is exported to a temporary directory ($TMPDIR). Text goes to stdout, the rest to
stderr. The same seed on the same device gives the same text.

Examples:
    python -m primus.generate llama3_8B_tiny "It is a truth"
    python -m primus.generate llama3_8B_tiny "It is a truth" --temperature 0
    python -m primus.generate output/runs/mine/0123456789ab/checkpoints/iter_0000400 "It is" \\
        --top-p 0.9 --num-return-sequences 3 --seed 7
    python -m primus.generate some/model - --json < prompt.txt
"""

from __future__ import annotations

import argparse
import json
import math
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from primus.artifacts.run import RunIdentity
from primus.command_line import Command
from primus.errors import ArtifactError, CheckpointError, UserError, run_main
from primus.hidden import printable
from primus.trainer import checkpoint_directory
from primus.trainer.named_run import find_run, find_tokenizer

if TYPE_CHECKING:
    from primus.huggingface.sample import Sample


def main(argv: Sequence[str] | None = None) -> None:
    """Find the model, continue the prompt, print."""
    args = command_parser().parse_args(argv)
    prompt = _prompt(args.prompt)
    with model_directory(args.run, args.tokenizer) as (directory, about):
        from primus.huggingface.load import device_of, load_model
        from primus.huggingface.sample import Sampling, sample

        device = device_of(args.device)
        loaded = load_model(directory, device)
        names = Sampling.__dataclass_fields__
        how = Sampling(**{name: getattr(args, name) for name in names})
        print(f"{about}; {loaded.dtype} on {device}, seed {how.seed}", file=sys.stderr, flush=True)
        found = sample(loaded, prompt, how)
    if args.json:
        for one in found:
            print(json.dumps({"prompt": prompt, "seed": how.seed, **asdict(one)}))
        return
    print("\n".join(_lines(prompt, found)))


def command_parser() -> Command:
    """The arguments of the command."""
    parser = Command("primus.generate", __doc__)
    add = parser.add_argument
    add("run", metavar="RUN", help="experiment, experiment/key or path")
    add("prompt", metavar="PROMPT", help="text to continue; -: read from stdin; '': a new document")
    add("--max-new-tokens", type=_whole(1), metavar="N", help="default: 64, or what fits")
    add("--temperature", type=_temperature, default=1.0, metavar="T", help="0: greedy")
    add("--top-k", type=_whole(0), default=0, metavar="K", help="only the K most likely; 0: all")
    add("--top-p", type=_share, default=1.0, metavar="P", help="only the most likely, up to P")
    add("--num-return-sequences", type=_whole(1), default=1, metavar="N", help="how many")
    add("--seed", type=_whole(0), default=secrets.randbelow(2**31), help="default: another one")
    add("--device", help="as torch names it; default: a GPU where there is one")
    add("--tokenizer", type=Path, help="of a checkpoint, its manifest; default: by fingerprint")
    add("--json", action="store_true", help="one JSON object per sequence")
    return parser


def _whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # isdecimal: of any alphabet, as int() reads it; no sign, no underscore.
        if not text.isdecimal() or not least <= int(text) < 2**63:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
        return int(text)

    return parse


def _temperature(text: str) -> float:
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0 and at most 1")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan  # within no bounds


@contextmanager
def model_directory(name: str, tokenizer: Path | None) -> Iterator[tuple[Path, str]]:
    """The Hugging Face directory that RUN means, and what it is in words.

    Args:
        tokenizer: manifest of the tokenizer for a checkpoint; None: found by its fingerprint.

    Raises:
        UserError: RUN means nothing, or has nothing to sample from.
        CheckpointError: no checkpoint of the run is good.
    """
    path = Path(name)
    if (path / "config.json").is_file():
        yield path, str(path)
        return
    if checkpoint_directory.iteration_of(path) is not None and path.is_dir():
        run, checkpoints = path.resolve().parents[1], [path]
    else:
        run = find_run(name, newest=True)
        checkpoints = checkpoint_directory.newest_first(run / "checkpoints")
        if (run / "hf/manifest.json").is_file():
            yield run / "hf", _exported(run, checkpoints)
            return
    with tempfile.TemporaryDirectory(prefix="primus-generate-") as temporary:
        directory = Path(temporary) / "hf"
        made = _export(run, checkpoints, tokenizer, directory)
        yield directory, f"{run / 'checkpoints' / made}"


def _exported(run: Path, checkpoints: Sequence[Path]) -> str:
    from primus.artifacts.export import ExportManifest

    name = ExportManifest.load(run / "hf/manifest.json").checkpoint
    about = f"{run / 'hf'} of {name}"
    if checkpoints and checkpoints[0].name != name:
        about += f" ({checkpoints[0]} is newer: name it to sample from it)"
    return about


def _export(run: Path, checkpoints: Sequence[Path], tokenizer: Path | None, directory: Path) -> str:
    """Export the first of `checkpoints` that is good; its name."""
    from primus.export_checkpoint import export_checkpoint

    if not (run / "run.json").is_file():
        raise UserError(
            f"RUN: {run}: has no run.json, so whose checkpoint it is is not known. "
            "Fix: name a checkpoint in the directory of its run"
        )
    identity = RunIdentity.load(run / "run.json")
    if not checkpoints:
        raise UserError(
            f"RUN = {run}: has neither an export nor a checkpoint. Fix: train it first: "
            f"snakemake train_{identity.experiment}"
        )
    manifest = tokenizer or find_tokenizer(
        identity.tokenizer_fingerprint, run.resolve().parents[2] / "tokenizer"
    )
    for checkpoint in checkpoints:
        try:
            with redirect_stdout(sys.stderr):
                export_checkpoint(checkpoint, identity, manifest, directory / "manifest.json")
        except ArtifactError as error:
            print(f"warning: {checkpoint.name} is skipped: {error}", file=sys.stderr, flush=True)
            continue
        return checkpoint.name
    raise CheckpointError(
        f"{run}: none of {len(checkpoints)} checkpoints is good. Fix: name another; "
        f"python -m primus.checkpoint verify {run} says what is wrong with each"
    )


def _prompt(given: str) -> str:
    """The prompt itself; of bytes that are no UTF-8 Python makes what no tokenizer takes."""
    try:
        prompt = sys.stdin.read() if given == "-" else given
        prompt.encode()
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        fix = "convert it, as by iconv -f latin1 -t utf-8"
        raise UserError(f"PROMPT: is not UTF-8: {error.reason}. Fix: {fix}") from None
    return prompt


def _lines(prompt: str, found: Sequence[Sample]) -> Iterator[str]:
    for number, one in enumerate(found, start=1):
        if len(found) > 1:
            yield f"--- {number} of {len(found)}"
        # What a model writes may hold anything, also what steers a terminal.
        yield printable(prompt + one.text, keep="\n\t")


if __name__ == "__main__":
    run_main(main)
