"""Gated feed-forward layer of the local spec."""

from __future__ import annotations

from typing import Any

from megatron.core.transformer.mlp import MLP
from torch import Tensor

from primus.trainer.kernels import swiglu


class SwiGLUMLP(MLP):
    """Gated feed-forward layer with one compiled activation."""

    def forward(
        self, hidden_states: Tensor, per_token_scale: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, Tensor | None]:
        """(s, b, hidden) → (s, b, hidden) and the output's bias, if it is added later."""
        wide, bias = self.linear_fc1(hidden_states)
        if bias is not None:
            wide = wide + bias
        return self.linear_fc2(swiglu(wide))  # type: ignore[no-any-return]
