"""Text, tokenizer and sampling."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import StringConstraints

from primus.config.schema.keys import Keys, Name, key


class HuggingFaceDataset(Keys):
    """Arguments of `datasets.load_dataset`."""

    path: str = key(doc="Name of the dataset on the hub.", identity="data", min_length=1)
    name: str | None = key(None, doc="Configuration of the dataset.", identity="data")
    revision: str | None = key(None, doc="Commit or tag on the hub.", identity="data")
    split: str = key("train", doc="Which split to take.", identity="data")


class Data(Keys):
    """Keys from text to samples."""

    dataset: Name = key(doc="Name of the token files under output/data.", identity="data")
    data_path: list[str] = key(
        [],
        doc="Text (.txt), JSON lines (.jsonl), each also .gz or .zst; globs relative to the root.",
        identity="data",
    )
    hf_dataset: HuggingFaceDataset | None = key(
        None, doc="A Hugging Face dataset instead of data_path.", identity="data"
    )
    data_version: str = key(
        "1",
        doc="Change it when the text behind the same data_path changed on purpose.",
        identity=("tokenizer", "data"),
    )
    json_key: str = key(
        "text",
        doc="Field of a JSON line that holds the text.",
        identity=("tokenizer", "data"),
    )
    append_eod: bool = key(
        True, doc="End each document with the tokenizer's end-of-document id.", identity="data"
    )
    max_bad_lines: int = key(
        100,
        doc="JSON lines that may be skipped as unreadable.",
        identity="data",
        option="tokenizer",
        ge=0,
    )
    workers: int = key(2, doc="Processes that tokenise.", option="data", ge=1)

    tokenizer_type: Literal["HuggingFaceTokenizer"] = key(
        "HuggingFaceTokenizer", doc="Family of the tokenizer.", identity="tokenizer"
    )
    tokenizer_model: str | None = key(
        None,
        doc="Hub id or directory of a tokenizer; null: one is trained from tokenizer_data_path.",
        identity="tokenizer",
    )
    tokenizer_data_path: list[str] = key(
        [],
        doc="Text from which a byte-level BPE is trained when tokenizer_model is null.",
        identity="tokenizer",
    )
    tokenizer_vocab_size: int | None = key(
        None,
        doc="Entries of the trained tokenizer, special tokens included.",
        identity="tokenizer",
        ge=257,
    )

    seq_length: int = key(
        doc="Tokens per sample.",
        identity=("samples", "shapes", "train"),
        option="evaluate",
        ge=2,
    )
    split: Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?(,\d+(\.\d+)?){2}$")] = key(
        "969,30,1",
        doc="Shares of the documents for training, validation and test.",
        identity="samples",
    )
    eod_mask_loss: bool = key(
        False, doc="Leave end-of-document positions out of the loss.", identity="train"
    )
