"""Training a byte-level BPE, the kind of tokenizer that GPT-2 and Llama 3 use."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from primus.dataset.bad_lines import BadLines
from primus.dataset.text import BadRecord, TextFile, parse
from primus.files import atomic_write

EOD = "<|endoftext|>"
_BATCH = 256


def train_bpe(
    files: Iterable[TextFile],
    directory: Path,
    *,
    vocab_size: int,
    json_key: str = "text",
    max_bad_lines: int = 100,
) -> int:
    """Train on the documents of `files` and write a tokenizer that `AutoTokenizer` loads.

    The same text gives the same bytes. Text of any language can be encoded: all 256 bytes are in
    the vocabulary. A text too small for `vocab_size` gives fewer entries.

    Returns:
        The id of the end-of-document token.

    Raises:
        DataError: the text cannot be read, or has too many bad lines.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bad = BadLines(max_bad_lines)
    tokenizer.train_from_iterator(_batches(_documents(files, json_key, bad)), trainer)
    directory.mkdir(parents=True, exist_ok=True)
    with atomic_write(directory / "tokenizer.json") as stream:
        stream.write(tokenizer.to_str(pretty=True) + "\n")
    _write_json(directory / "tokenizer_config.json", _CONFIG)
    _write_json(directory / "special_tokens_map.json", _SPECIAL_TOKENS)
    return int(tokenizer.token_to_id(EOD))


_SPECIAL_TOKENS = {"bos_token": EOD, "eos_token": EOD}
_CONFIG = _SPECIAL_TOKENS | {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
}


def _documents(files: Iterable[TextFile], json_key: str, bad: BadLines) -> Iterator[str]:
    for file in files:
        for line, raw in file.records():
            try:
                text = parse(file.kind, raw, json_key)
            except BadRecord as error:
                bad.add(file.name, file.kind, line + error.lines_below, str(error))
                continue
            if text.strip():
                yield text


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    yield batch


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    with atomic_write(path) as stream:
        json.dump(content, stream, indent=2, sort_keys=True)
        stream.write("\n")
