"""How well a model predicts documents: every token once, over windows that move on.

A document is preceded by the end of another one, as in training, so that its first token is
predicted, too. A window sees `max_length` tokens and moves on by `stride`; only the tokens that it
newly reaches are counted, the others are their context.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional

from primus.errors import DataError, PrimusError
from primus.huggingface.load import LoadedModel

_SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class Window:
    """One pass: the model sees `inputs`, and predicts `targets` at their last places."""

    inputs: list[int]
    targets: list[int]


@dataclass
class Scores:
    """Sums over all windows so far; `nats` is the cross entropy of `tokens` tokens."""

    nats: float = 0.0
    tokens: int = 0
    windows: int = 0

    @property
    def loss(self) -> float:
        """Mean cross entropy in nats per token."""
        return self.nats / self.tokens


def windows(ids: Sequence[int], before: int, max_length: int, stride: int) -> Iterator[Window]:
    """The windows of one document: together they predict each of its tokens once.

    Args:
        before: the id that stands before the document.
        stride: at most `max_length`.
    """
    stream = [before, *ids]
    reached = 0
    while reached < len(ids):
        end = min(len(ids), reached + (stride if reached else max_length))
        first = max(0, end - max_length)
        yield Window(inputs=stream[first:end], targets=stream[reached + 1 : end + 1])
        reached = end


def score(
    loaded: LoadedModel,
    documents: Iterable[Sequence[int]],
    *,
    max_length: int,
    stride: int,
    batch_size: int,
) -> Scores:
    """Predict every token of the documents.

    Raises:
        DataError: no document has a token, or one has an id that the model does not know.
        PrimusError: the predictions are not finite.
    """
    before = (loaded.ends or [0])[0]
    rows = loaded.model.config.vocab_size
    made = (
        window
        for ids in documents
        for window in windows(_known(ids, rows), before, max_length, stride)
    )
    scores, said = Scores(), time.monotonic()
    with torch.inference_mode():
        while batch := list(islice(made, batch_size)):
            scores.nats += float(_nats(loaded, batch))
            scores.tokens += sum(len(window.targets) for window in batch)
            scores.windows += len(batch)
            if time.monotonic() - said > _SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                print(f"{scores.tokens:,} tokens, loss {scores.loss:.4f} so far", flush=True)
    if not scores.tokens:
        raise DataError("evaluation.texts: hold no text. Fix: name text that is not empty")
    if not scores.nats < float("inf"):
        raise PrimusError("the model's predictions are not finite numbers")
    return scores


def _known(ids: Sequence[int], rows: int) -> Sequence[int]:
    if ids and max(ids) >= rows:
        raise DataError(
            f"the text has the id {max(ids)}, the model knows those below {rows}. "
            "Fix: restore the tokenizer that the model was trained with"
        )
    return ids


def _nats(loaded: LoadedModel, batch: Sequence[Window]) -> Tensor:
    """The cross entropy of a batch's targets, summed: in float32 per row, in float64 over rows."""
    longest = max(len(window.inputs) for window in batch)
    # Padding stands at the end: no token before it sees it.
    ids = torch.tensor([w.inputs + [0] * (longest - len(w.inputs)) for w in batch])
    mask = torch.tensor([[1] * len(w.inputs) + [0] * (longest - len(w.inputs)) for w in batch])
    logits = loaded.model(
        ids.to(loaded.device), attention_mask=mask.to(loaded.device), use_cache=False
    ).logits
    total = torch.zeros((), dtype=torch.float64)
    for row, window in zip(logits, batch, strict=True):
        end = len(window.inputs)
        said = row[end - len(window.targets) : end].float()
        targets = torch.tensor(window.targets, device=loaded.device)
        total += functional.cross_entropy(said, targets, reduction="sum").double().cpu()
    return total
