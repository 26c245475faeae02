"""Model FLOPs per token, the numerator of every utilisation figure."""

from __future__ import annotations

from primus.config.frozen import StageSettings


def flops_per_token(settings: StageSettings) -> float:
    """FLOPs of forward and backward for one token, without recomputation.

    Every weight of a linear layer costs 2 FLOPs forward and 4 backward; causal attention costs
    2·(seq_length / 2) FLOPs per element of queries·keys and of scores·values, three times in
    all. Norms, activations and the embedding look-up are not counted. PaLM, appendix B, with the
    causal half of the scores.
    """
    hidden, head = settings.hidden_size, settings.kv_channels
    heads, groups = settings.num_attention_heads, settings.num_query_groups
    attention = hidden * head * (heads + 2 * groups) + heads * head * hidden
    feed_forward = hidden * settings.ffn_hidden_size * (3 if settings.swiglu else 2)
    weights = settings.num_layers * (attention + feed_forward) + hidden * settings.vocab_size
    scores = settings.num_layers * 2 * heads * head * settings.seq_length / 2
    return float(6 * (weights + scores))
