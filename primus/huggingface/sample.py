"""Text sampled from a model, by transformers' own generation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from primus.errors import UserError
from primus.huggingface.load import LoadedModel

DEFAULT_NEW_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen, in transformers' words.

    Attributes:
        max_new_tokens: None: `DEFAULT_NEW_TOKENS`, or what the model has positions for.
        temperature: 0: always the most likely token.
        top_k: among so many of the most likely; 0: among all.
        top_p: among the most likely that together have this probability.
    """

    max_new_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    num_return_sequences: int = 1
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One continuation.

    Attributes:
        text: without the prompt. tokens: its ids, without the one that ends a document.
        ended: the model ended the document; otherwise it was cut off.
    """

    text: str
    tokens: list[int]
    ended: bool


def sample(loaded: LoadedModel, prompt: str, how: Sampling) -> list[Sample]:
    """Continue `prompt`; the same arguments on the same device give the same text.

    Raises:
        UserError: prompt and new tokens are more than the model has positions for, or several
            sequences are asked for that would all be the same.
    """
    if how.temperature == 0 and how.num_return_sequences > 1:
        raise UserError(
            f"--num-return-sequences = {how.num_return_sequences}: at temperature 0 all are the "
            "same. Fix: leave it out, or raise --temperature"
        )
    head = loaded.encode(prompt)
    new = _new_tokens(loaded, len(head), how.max_new_tokens)
    torch.manual_seed(how.seed)
    with torch.inference_mode():
        ids = torch.tensor([head], device=loaded.device)
        made = loaded.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=_generation(loaded, how, new),
        )
    return [_finished(loaded, head, row) for row in made[:, len(head) :].tolist()]


def _new_tokens(loaded: LoadedModel, head: int, wanted: int | None) -> int:
    if head == 0:
        raise UserError(
            "PROMPT: is empty, and the model has no id that begins a document. Fix: write a prompt"
        )
    room = loaded.context - head
    if room < (wanted or 1):
        fix = f"at most {room}" if room > 0 else "a shorter prompt"
        raise UserError(
            f"--max-new-tokens = {wanted or DEFAULT_NEW_TOKENS}: with {head} tokens of the prompt "
            f"more than the {loaded.context} positions of the model. Fix: {fix}"
        )
    return wanted or min(DEFAULT_NEW_TOKENS, room)


def _generation(loaded: LoadedModel, how: Sampling, new: int) -> object:
    from transformers import GenerationConfig

    # Rows that pad the vocabulary: they were never trained, and have no text.
    unknown = sorted(set(range(loaded.model.config.vocab_size)) - loaded.known_ids)
    chosen = {}
    if how.temperature > 0:
        chosen = {"temperature": how.temperature, "top_k": how.top_k, "top_p": how.top_p}
    return GenerationConfig(
        max_new_tokens=new,
        do_sample=how.temperature > 0,
        num_beams=1,
        num_return_sequences=how.num_return_sequences,
        suppress_tokens=unknown or None,
        eos_token_id=loaded.ends or None,
        pad_token_id=(loaded.ends or [0])[0],
        **chosen,
    )


def _finished(loaded: LoadedModel, head: list[int], tail: list[int]) -> Sample:
    ends = [place for place, token in enumerate(tail) if token in loaded.ends]
    tokens = tail[: ends[0]] if ends else tail
    # Together with the prompt: some tokenizers drop a space at the start of what they decode.
    before, whole = loaded.decode(head), loaded.decode(head + tokens)
    text = whole[len(before) :] if whole.startswith(before) else loaded.decode(tokens)
    return Sample(text=text, tokens=tokens, ended=bool(ends))
