"""The model itself: what `configs/models/<model>.yaml` may hold. Names are Megatron's."""

from __future__ import annotations

from typing import Literal

from primus.config.schema.keys import Keys, Stage, key

_SHAPES_AND_TRAIN: tuple[Stage, ...] = ("shapes", "train")


class Architecture(Keys):
    """Keys that describe a decoder-only transformer."""

    num_layers: int = key(doc="Transformer layers.", identity=_SHAPES_AND_TRAIN, ge=1)
    hidden_size: int = key(doc="Width of the residual stream.", identity=_SHAPES_AND_TRAIN, ge=8)
    ffn_hidden_size: int = key(
        doc="Width of the feed-forward layer, per branch when gated.",
        identity=_SHAPES_AND_TRAIN,
        ge=8,
    )
    num_attention_heads: int = key(doc="Query heads.", identity=_SHAPES_AND_TRAIN, ge=1)
    num_query_groups: int | None = key(
        None,
        doc="Key/value heads (grouped-query attention); null: as many as query heads.",
        identity=_SHAPES_AND_TRAIN,
        ge=1,
    )
    kv_channels: int | None = key(
        None,
        doc="Size of one head; null: hidden_size / num_attention_heads.",
        identity=_SHAPES_AND_TRAIN,
        ge=1,
    )
    vocab_size: int = key(
        doc="Rows of the embedding before padding.", identity=_SHAPES_AND_TRAIN, ge=2
    )
    make_vocab_size_divisible_by: int = key(
        1,
        doc="The embedding is padded to a multiple of this times tensor_model_parallel_size.",
        identity=_SHAPES_AND_TRAIN,
        ge=1,
    )
    max_position_embeddings: int = key(
        doc="Longest sequence that the model is meant for.", identity="train", ge=1
    )
    normalization: Literal["RMSNorm"] = key(
        "RMSNorm", doc="Kind of normalisation.", identity=_SHAPES_AND_TRAIN
    )
    norm_epsilon: float = key(1e-5, doc="Epsilon of the normalisation.", identity="train", gt=0)
    swiglu: bool = key(
        True, doc="SiLU-gated feed-forward layer instead of GELU.", identity=_SHAPES_AND_TRAIN
    )
    add_bias_linear: bool = key(
        False, doc="Biases in the linear layers.", identity=_SHAPES_AND_TRAIN
    )
    add_qkv_bias: bool = key(
        False, doc="Bias in the query/key/value projection.", identity=_SHAPES_AND_TRAIN
    )
    untie_embeddings_and_output_weights: bool = key(
        True, doc="Separate weights for the embedding and the output layer.", identity="train"
    )
    rotary_base: float = key(10000.0, doc="Base of the rotary frequencies.", identity="train", gt=0)
    use_rope_scaling: bool = key(
        False, doc="Llama 3.1 scaling of the rotary frequencies.", identity="train"
    )
    rope_scaling_factor: float = key(8.0, doc="Factor of use_rope_scaling.", identity="train", ge=1)
    attention_dropout: float = key(
        0.0, doc="Dropout of the attention weights.", identity="train", ge=0, lt=1
    )
    hidden_dropout: float = key(
        0.0, doc="Dropout of each layer's output.", identity="train", ge=0, lt=1
    )
    init_method_std: float = key(
        0.02, doc="Standard deviation of the initial weights.", identity="train", gt=0
    )
    qk_layernorm: bool = key(
        False,
        doc="Normalise queries and keys; of multi-latent attention the low-rank ones.",
        identity=_SHAPES_AND_TRAIN,
    )
    published_parameters: int | None = key(
        None,
        doc="Parameters as published, without multi-token prediction; the dry run compares.",
        ge=1,
    )
