"""Number formats. Names are Megatron's."""

from __future__ import annotations

from typing import Literal

from primus.config.schema.keys import Keys, key


class Precision(Keys):
    """Keys of lower precision; without any, everything is float32."""

    bf16: bool = key(
        False, doc="bfloat16 with float32 master weights.", identity=("shapes", "train")
    )
    fp16: bool = key(False, doc="float16 with loss scaling.", identity=("shapes", "train"))
    loss_scale: float | None = key(
        None, doc="Constant loss scale of fp16; null: a dynamic one.", identity="train", gt=0
    )
    initial_loss_scale: float = key(
        2.0**32, doc="First dynamic loss scale.", identity="train", gt=0
    )
    min_loss_scale: float = key(1.0, doc="Smallest dynamic loss scale.", identity="train", gt=0)
    loss_scale_window: int = key(
        1000, doc="Iterations without overflow before the scale doubles.", identity="train", ge=1
    )
    hysteresis: int = key(
        2, doc="Overflows in a row before the scale halves.", identity="train", ge=1
    )
    fp8: Literal["e4m3", "hybrid"] | None = key(
        None,
        doc="float8 GEMMs by transformer-engine (with bf16 around them).",
        identity=("shapes", "train"),
    )
    fp8_recipe: Literal["delayed", "tensorwise", "blockwise", "mxfp8"] = key(
        "delayed", doc="How float8 scales are chosen.", identity=("shapes", "train")
    )
