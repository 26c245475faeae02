"""Tokenising in worker processes. Workers import neither torch nor megatron: they start at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primus.dataset.sources import Part
from primus.dataset.text import BadRecord, Kind, Record, parse
from primus.dataset.tokenizer import read_tokenizer
from primus.errors import PrimusError

_BATCH_BYTES = 1 << 18
_BATCHES_PER_WORKER = 4


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How text becomes tokens.

    Attributes:
        eod_id: put at the end of each document; None: nothing is.
    """

    tokenizer_json: Path
    json_key: str
    eod_id: int | None


@dataclass
class Batch:
    """Consecutive documents as tokens.

    Attributes:
        tokens: int32, all documents one after the other.
        lengths: tokens of each document.
        characters: of the text of these documents.
        empty: documents without text, left out.
        bad: number and fault of each line that could not be read.
        read: position in the source after this batch (bytes).
    """

    tokens: NDArray[np.int32]
    lengths: list[int]
    characters: int
    empty: int
    bad: list[tuple[int, str]] = field(default_factory=list)
    read: int = 0


class TokenizerPool:
    """Worker processes that tokenise batches of records."""

    def __init__(self, executor: ProcessPoolExecutor, workers: int) -> None:
        self._executor, self._window = executor, workers * _BATCHES_PER_WORKER

    def batches(self, source: Part) -> Iterator[Batch]:
        """Tokenise the records of `source`, in their order; work starts before the first `next`.

        Raises:
            PrimusError: a worker process died.
        """
        futures = self._submitted(source)
        return _in_order(futures, deque(islice(futures, self._window)))

    def _submitted(self, source: Part) -> Iterator[tuple[Future[Batch], int]]:
        for records in _grouped(source.records()):
            yield self._executor.submit(encode, source.kind, records), source.position


def _in_order(
    futures: Iterator[tuple[Future[Batch], int]], waiting: deque[tuple[Future[Batch], int]]
) -> Iterator[Batch]:
    try:
        while waiting:
            future, position = waiting.popleft()
            batch = future.result()
            batch.read = position
            yield batch
            waiting.extend(islice(futures, 1))
    except BrokenProcessPool as error:
        raise PrimusError(
            "a tokenizer process died (out of memory?). Finished files are kept: "
            "start the stage again, with fewer workers if memory is short"
        ) from error


@contextmanager
def tokenizer_pool(recipe: Recipe, workers: int) -> Iterator[TokenizerPool]:
    """Start `workers` processes; they end with the context, or with this process."""
    executor = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(recipe,)
    )
    try:
        yield TokenizerPool(executor, workers)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _grouped(records: Iterable[Record]) -> Iterator[list[Record]]:
    group, size = list[Record](), 0
    for record in records:
        group.append(record)
        size += len(record.raw)
        if size >= _BATCH_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


_recipe: Recipe
_tokenizer: Any


def _start(recipe: Recipe) -> None:
    global _recipe, _tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _recipe, _tokenizer = recipe, read_tokenizer(recipe.tokenizer_json)


def _end_with_parent() -> None:
    # A worker whose parent was killed would otherwise wait for work for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def encode(kind: Kind, records: list[Record]) -> Batch:
    """Tokenise records, in a worker."""
    texts: list[str] = []
    bad: list[tuple[int, str]] = []
    empty = 0
    for line, raw in records:
        try:
            text = parse(kind, raw, _recipe.json_key)
        except BadRecord as error:
            bad.append((line + error.lines_below, str(error)))
            continue
        if text.strip():
            texts.append(text)
        else:
            empty += 1
    # A third of what numpy takes to read a list.
    tokens = array("I")
    end = [] if _recipe.eod_id is None else [_recipe.eod_id]
    lengths: list[int] = []
    for encoding in _tokenizer.encode_batch_fast(texts, add_special_tokens=False):
        document = encoding.ids
        document += end
        tokens.fromlist(document)
        lengths.append(len(document))
    filled = [length for length in lengths if length]
    empty += len(lengths) - len(filled)
    return Batch(np.array(tokens, np.int32), filled, sum(map(len, texts)), empty, bad)
