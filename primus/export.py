"""Export the newest good checkpoint of a run as a Hugging Face directory.

transformers loads it: `AutoModelForCausalLM.from_pretrained("output/runs/…/hf")`. Example:

    python -m primus.export --settings export.json --train train.json \\
        --tokenizer tokenizer/manifest.json --output output/runs/mine/hf/manifest.json
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from primus.artifacts.export import ExportManifest
from primus.artifacts.manifest import FileRecord
from primus.artifacts.run import RunIdentity, TrainManifest
from primus.artifacts.timing import stage_time
from primus.artifacts.tokens import TokenizerManifest
from primus.config.frozen import Values, add_settings_arguments, load_settings, with_defaults
from primus.errors import DataError, run_main
from primus.files import replace_directory, sha256_file
from primus.trainer.checkpoint_directory import verify


def main(argv: Sequence[str] | None = None) -> None:
    """Write the directory, then its manifest."""
    parser = argparse.ArgumentParser(
        prog="python -m primus.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_settings_arguments(parser)
    parser.add_argument("--train", type=Path, required=True, help="train.json of the run")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer manifest")
    parser.add_argument("--output", type=Path, required=True, help="hf/manifest.json")
    args = parser.parse_args(argv)
    load_settings(args, "export")
    with stage_time("export", args.output):
        export(args.train, args.tokenizer, args.output)


def export(train_path: Path, tokenizer_path: Path, output: Path) -> None:
    """Export the last checkpoint that `train_path` lists; errors: as of `export_checkpoint`."""
    train = TrainManifest.load(train_path)
    checkpoint = train_path.parent / "checkpoints" / train.checkpoints[-1].name
    export_checkpoint(checkpoint, train, tokenizer_path, output)


def export_checkpoint(
    checkpoint: Path, run: TrainManifest | RunIdentity, tokenizer_path: Path, output: Path
) -> None:
    """Export a checkpoint of `run`; it is verified first.

    Raises:
        DataError: the tokenizer is not the one of the run.
        ArtifactError: the checkpoint or the tokenizer is damaged.
    """
    from primus.huggingface.write import write_model

    tokenizer, directory = TokenizerManifest.load(tokenizer_path), output.parent
    if tokenizer.fingerprint != run.tokenizer_fingerprint:
        raise DataError(
            f"{tokenizer_path}: fingerprint = {tokenizer.fingerprint}, but the run was trained "
            f"with {run.tokenizer_fingerprint}. Fix: restore the run's tokenizer"
        )
    shutil.rmtree(temporary := directory.with_name(f".{directory.name}.tmp"), ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        verify(checkpoint, run.key)
        settings = Values(with_defaults(run.settings), "the run's settings")
        written = write_model(checkpoint, settings, temporary, eod_id=tokenizer.eod_id)
        for name, record in tokenizer.files.items():
            record.verify(source := tokenizer_path.parent / name)
            shutil.copyfile(source, temporary / name)
        files = {path.name: FileRecord.of(path) for path in sorted(temporary.iterdir())}
        # An older one is replaced: it can be made again from its checkpoint.
        replace_directory(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    manifest = ExportManifest(
        experiment=run.experiment,
        key=run.key,
        architecture=written.architecture,
        checkpoint=checkpoint.name,
        checkpoint_manifest_sha256=sha256_file(checkpoint / "manifest.json"),
        tokenizer_fingerprint=tokenizer.fingerprint,
        parameters=written.parameters,
        dtype=written.dtype,
        files=files,
    )
    manifest.save(output)
    print(f"{directory}: {written.parameters:,} numbers in {written.dtype} from {checkpoint.name}")


if __name__ == "__main__":
    run_main(main)
