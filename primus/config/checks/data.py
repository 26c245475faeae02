"""Where text, tokens and tokenizers come from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from primus.config import start_model, text_files
from primus.config.checks.fault import Context, Fault


def split(s: Any, _: Context) -> Iterator[Fault]:
    """There is something to train on, and to validate on where validation is asked for."""
    training, validation, _test = (float(share) for share in s.split.split(","))
    if training == 0:
        yield Fault("split", "leaves nothing to train on", "write a first share above 0")
    if validation == 0 and s.eval_iters > 0:
        why = "leaves nothing to validate on, and eval_iters is above 0"
        yield Fault("split", why, "write a second share above 0, or eval_iters: 0")


def tokenizer(s: Any, context: Context) -> Iterator[Fault]:
    """A tokenizer is either named or trained."""
    if s.tokenizer_model and s.tokenizer_data_path:
        why = "tokenizer_model names a finished tokenizer as well"
        yield Fault("tokenizer_data_path", why, "keep one of the two")
    if not s.tokenizer_model and not s.tokenizer_data_path:
        why = "there is no tokenizer: tokenizer_model is not set either"
        fix = "write tokenizer_model: <hub id or directory>, or the text to train one from"
        yield Fault("tokenizer_data_path", why, fix)
    if s.tokenizer_model and "tokenizer" in context.stages:
        yield from _tokenizer_path(s.tokenizer_model, context.root)
    if s.tokenizer_vocab_size is not None and s.tokenizer_model:
        why = "belongs to a trained tokenizer, and tokenizer_model names a finished one"
        yield Fault("tokenizer_vocab_size", why, "remove the line")
    if s.tokenizer_vocab_size is not None and s.tokenizer_vocab_size > s.vocab_size:
        why = f"is above vocab_size {s.vocab_size}: the model has no row for the last ids"
        yield Fault("tokenizer_vocab_size", why, f"write at most {s.vocab_size}")


def _tokenizer_path(named: str, root: Path) -> Iterator[Fault]:
    # What has two parts may be a name of the hub, and there is no revision to tell by.
    if ".." in Path(named).parts or not start_model.is_path(named) or (root / named).is_dir():
        return
    yield Fault("tokenizer_model", *start_model.no_directory(named, root))


def text(s: Any, _: Context) -> Iterator[Fault]:
    """Text comes from files or from the hub."""
    if s.data_path and s.hf_dataset:
        yield Fault("data_path", "hf_dataset is set as well", "keep one of the two")
    if not s.data_path and not s.hf_dataset:
        why = "there is no text: hf_dataset is not set either"
        yield Fault("data_path", why, "write data_path: [files], or hf_dataset: {path: <hub id>}")


def files(s: Any, context: Context) -> Iterator[Fault]:
    """Every pattern matches a file that the stages can read."""
    wanted = [("data_path", "data", s.data_path)]
    if not s.tokenizer_model:
        wanted.append(("tokenizer_data_path", "tokenizer", s.tokenizer_data_path))
    for key, stage, patterns in wanted:
        for number, pattern in enumerate(patterns):
            for why, fix in text_files.mistakes(pattern, context.root, stage in context.stages):
                yield Fault(f"{key}.{number}", why, fix)


def paths(s: Any, _: Context) -> Iterator[Fault]:
    """What is written stays inside the root; what is read does not climb out of it by `..`."""
    store = Path(s.gemm_tuning.store)
    if store.is_absolute() or ".." in store.parts or not store.parts:
        fix = "write a path below the root; to share it elsewhere make it a symbolic link"
        yield Fault("gemm_tuning.store", "leaves the root of the project", fix)
    for key, value in (
        ("gemm_tuning.replay_file", s.gemm_tuning.replay_file),
        ("tokenizer_model", s.tokenizer_model),
    ):
        if value is not None and ".." in Path(value).parts:
            yield Fault(key, "climbs out of the root by '..'", "write the absolute path")
