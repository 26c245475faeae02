"""What a rank keeps of the forward pass until the backward pass, in bytes.

Counted tensor by tensor for attention that never writes its scores to memory (FlashAttention,
torch's SDPA), and on a CPU for the one that keeps them: of Korthikanti et al., Reducing Activation
Recomputation in Large Transformer Models (arXiv:2205.05198), the terms in s·b·h, with gated
feed-forward layers, query groups, latent attention and experts in their place. Routing is taken as
balanced.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from primus.config.kept_scores import in_blocks, kept_scores
from primus.config.layer_pattern import expert_layers
from primus.config.layout import layers_of_stages, layout
from primus.config.weights import head_size, query_groups

# Bytes per token and expert in the router: float32 scores before and after, and the choice.
_ROUTER = 4 + 4 + 1


class Activations(NamedTuple):
    """Bytes on one rank of one pipeline stage, at the fullest moment.

    Attributes:
        saved: what all micro batches in flight keep for their backward passes.
        output: logits and the gradient of the loss, on the last stage.
        working: a recomputed group of layers, and the gradients inside of one layer.
    """

    saved: float
    output: float
    working: float

    @property
    def total(self) -> float:
        """The peak: the loss and a layer's backward pass are never at work together."""
        return self.saved + max(self.output, self.working)


def activations(s: Any) -> tuple[Activations, ...]:
    """Activations of one rank of each pipeline stage.

    Raises:
        ValueError: the layers do not divide among the stages.
    """
    stages = layers_of_stages(s)
    return tuple(_of_stage(s, number, held) for number, held in enumerate(stages))


def micro_batches(s: Any) -> int:
    """Micro batches of one iteration on each rank; at least one."""
    return max(1, int(s.global_batch_size // (s.micro_batch_size * layout(s).data)))


def in_flight(s: Any, stage: int) -> int:
    """Forward passes of a chunk that a stage has run ahead of their backward passes, at most.

    1F1B and its interleaved form (Narayanan et al., arXiv:2104.04473): the warm-up of a stage and
    one more. Counted in chunks: a stage has one unless the schedule is interleaved.
    """
    share = layout(s)
    if share.virtual == 1:
        warm_up = share.pipeline - stage - 1
    else:
        warm_up = 2 * (share.pipeline - stage - 1) + (share.virtual - 1) * share.pipeline
    return min(warm_up + 1, micro_batches(s) * share.virtual)


def layer_tensors(s: Any, with_experts: bool) -> Mapping[str, float]:
    """Bytes that one layer keeps for one micro batch, by what recomputation may drop.

    `layernorm`, `core_attn`, `mla_up_proj`, `mlp`, `moe` and `moe_act` are the modules of
    selective recomputation; `rest` is always kept. `input` is the layer's input.
    """
    tp, width = s.tensor_model_parallel_size, _width(s)
    tokens = _tokens(s)
    own = tokens / (tp if s.sequence_parallel else 1)
    hidden = own * s.hidden_size * width
    # Our own layers make what a norm gave again where one linear layer alone reads it.
    apart = 2 if not _local(s) else bool(s.multi_latent_attention) + with_experts
    kept = {"input": hidden, "layernorm": apart * hidden + 2 * 4 * own, "rest": hidden}
    heads = s.num_attention_heads
    if s.multi_latent_attention:
        latent = own * ((s.q_lora_rank or 0) + s.kv_lora_rank) * width
        kept["rest"] += latent if _local(s) and s.qk_layernorm else 2 * latent
        # Fused attention takes and gives values as wide as queries, and the padding is cut off.
        query = heads * (s.qk_head_dim + s.qk_pos_emb_head_dim)
        value = heads * s.v_head_dim
        inside = value if in_blocks(s) else query
        kept["mla_up_proj"] = tokens / tp * (2 * query + inside) * width
        values = inside + value
    else:
        kept["rest"] += tokens / tp * (heads + 2 * query_groups(s)) * head_size(s) * width
        values = 2 * heads * head_size(s)
    # The scores' logarithmic sums; the values as attention gives them and as its projection reads.
    kept["core_attn"] = tokens / tp * heads * 4
    kept["core_attn"] += s.micro_batch_size * heads / tp * kept_scores(s) * width
    kept["rest"] += tokens / tp * values * width
    if with_experts:
        return kept | _expert_tensors(s, tokens, own)
    return kept | {"mlp": tokens / tp * _inner(s) * s.ffn_hidden_size * width}


def _expert_tensors(s: Any, tokens: float, own: float) -> dict[str, float]:
    """The router, the tokens sent to this rank's experts, the shared experts."""
    share, width = layout(s), _width(s)
    sent = own * s.moe_router_topk * share.expert_tensor
    expert = sent * s.moe_ffn_hidden_size / share.expert_tensor * width
    shared = tokens / share.tensor * (s.moe_shared_expert_intermediate_size or 0) * width
    return {
        "moe": own * s.num_experts * _ROUTER
        + sent * s.hidden_size * width
        + _branches(s) * expert
        + _inner(s) * shared,
        "moe_act": expert,
    }


def _of_stage(s: Any, stage: int, layers: Sequence[int]) -> Activations:
    share, pattern = layout(s), expert_layers(s)
    last = stage == share.pipeline - 1
    ahead = (s.mtp_num_layers or 0) if last else 0
    kinds = [pattern[layer] for layer in layers]
    size = len(kinds) // share.virtual
    chunks = [kinds[start : start + size] for start in range(0, len(kinds), size)]
    tensors = {kind: layer_tensors(s, kind) for kind in {*kinds, pattern[-1]}}
    saved = in_flight(s, stage) * max(_saved(s, tensors, chunk) for chunk in chunks)
    if last:
        # The final norm's input and output.
        saved += 2 * (1 + ahead) * tensors[pattern[-1]]["input"]
    if ahead:
        saved += ahead * _saved_ahead(s, tensors[pattern[-1]])
    present = {*kinds, pattern[-1]} if ahead else set(kinds)
    return Activations(
        saved=saved,
        output=_output(s) * (1 + ahead) if last else 0.0,
        working=max(_gradients(tensors[kind]) for kind in present) + _again(s, tensors, chunks),
    )


_Tensors = Mapping[bool, Mapping[str, float]]


def _saved(s: Any, tensors: _Tensors, kinds: Sequence[bool]) -> float:
    """Bytes that a chunk of layers keeps for one micro batch."""
    if s.recompute_granularity != "full":
        return sum(count * _kept(s, tensors[kind]) for kind, count in Counter(kinds).items())
    hidden = tensors[kinds[0]]["input"]
    if s.recompute_method == "uniform":
        return float(-(-len(kinds) // s.recompute_num_layers) * hidden)
    whole = Counter(kinds[s.recompute_num_layers :])
    kept = sum(count * _kept(s, tensors[kind]) for kind, count in whole.items())
    return float(min(s.recompute_num_layers, len(kinds)) * hidden + kept)


def _saved_ahead(s: Any, tensors: Mapping[str, float]) -> float:
    """A layer of multi-token prediction: also its two inputs, normalised and joined.

    Upstream recomputes it with method uniform only.
    """
    if s.recompute_granularity == "full" and s.recompute_method == "uniform":
        return 3 * tensors["input"]
    return 8 * tensors["input"] + _kept(s, tensors)


def _kept(s: Any, tensors: Mapping[str, float]) -> float:
    """Bytes that one layer keeps where it is not recomputed as a whole."""
    return sum(tensors.values()) - _dropped(s, tensors)


def _dropped(s: Any, tensors: Mapping[str, float]) -> float:
    """Bytes that selective recomputation saves in one layer."""
    if s.recompute_granularity != "selective":
        return 0.0
    modules = {*s.recompute_modules, *(["moe_act"] if "moe" in s.recompute_modules else [])}
    return sum(tensors.get(module, 0.0) for module in modules)


def _again(s: Any, tensors: _Tensors, chunks: Sequence[Sequence[bool]]) -> float:
    """The largest group of layers that is computed again at once."""
    if s.recompute_granularity == "selective":
        return max(_dropped(s, tensors[kind]) for chunk in chunks for kind in set(chunk))
    if s.recompute_granularity != "full":
        return 0.0
    sizes = {kind: sum(tensors[kind].values()) for chunk in chunks for kind in set(chunk)}
    if s.recompute_method == "block" or s.recompute_num_layers == 1:
        return max(sizes.values())
    count = s.recompute_num_layers
    groups = [chunk[i : i + count] for chunk in chunks for i in range(0, len(chunk), count)]
    return max(sum(sizes[kind] for kind in group) for group in groups)


def _gradients(tensors: Mapping[str, float]) -> float:
    """Gradients inside of one layer: as large as its widest module and its input."""
    widest = max(tensors.get("mlp", 0.0), tensors.get("moe", 0.0) + tensors.get("moe_act", 0.0))
    return max(widest, tensors["rest"]) + tensors["input"]


def _output(s: Any) -> float:
    """Logits and their gradient; on several tensor-parallel ranks also their exponentials.

    Our compiled loss writes the gradient over the logits; uncompiled, and upstream's, do not.
    """
    rows = -(-s.vocab_size // (s.make_vocab_size_divisible_by * s.tensor_model_parallel_size))
    bytes_each = 2 * _width(s) + (4 if s.tensor_model_parallel_size > 1 else 0)
    return float(_tokens(s) * rows * s.make_vocab_size_divisible_by * bytes_each)


def _tokens(s: Any) -> float:
    """Tokens of a micro batch on one rank."""
    return float(s.seq_length * s.micro_batch_size / s.context_parallel_size)


def _width(s: Any) -> int:
    return 2 if s.bf16 or s.fp16 else 4


def _inner(s: Any) -> int:
    """How many tensors as wide as ffn_hidden_size a feed-forward layer keeps.

    Our own gated layer makes what it multiplies again, from the two branches.
    """
    return 2 if s.swiglu and _local(s) else _branches(s) + 1


def _local(s: Any) -> bool:
    return bool(s.platform == "cpu" or s.transformer_impl == "local")


def _branches(s: Any) -> int:
    return 2 if s.swiglu else 1
