"""A little text, and the paths of what the stages make of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from primus.artifacts.tokens import DataManifest, SamplesManifest
from primus.dataset.tokenizer import LoadedTokenizer

WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "that",
    "he",
    "shall",
    "unto",
    "for",
    "I",
    "his",
    "a",
    "they",
    "be",
    "is",
    "not",
    "with",
    "all",
    "thou",
]


def document(number: int) -> str:
    """Some words that differ from document to document."""
    chosen = [WORDS[(number * number + 7 * i + i * i) % len(WORDS)] for i in range(20 + number % 9)]
    return f"Chapter {number}\n\n" + " ".join(chosen) + "."


DOCUMENTS = [document(number) for number in range(120)]


@dataclass(frozen=True)
class Made:
    """Paths and content of what was made."""

    root: Path
    texts: list[Path]
    tokenizer_path: Path
    tokenizer: LoadedTokenizer
    data_path: Path
    data: DataManifest
    samples_path: Path
    samples: SamplesManifest


def write_texts(directory: Path) -> list[Path]:
    """The documents in three files of two kinds."""
    directory.mkdir(parents=True)
    first, second, third = (directory / name for name in ("a.txt", "b.jsonl", "c.txt"))
    first.write_text("\n\f\n".join(DOCUMENTS[:40]) + "\n", encoding="utf-8")
    lines = [json.dumps({"text": text, "number": 1}) for text in DOCUMENTS[40:80]]
    second.write_text("\n".join(lines) + "\n", encoding="utf-8")
    third.write_text("\n\f\n".join(DOCUMENTS[80:]) + "\n", encoding="utf-8")
    return [first, second, third]
