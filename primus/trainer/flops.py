"""Model FLOPs per token; the formula needs no torch and is shared with the plan."""

from __future__ import annotations

from primus.config.flops import flops_per_token

__all__ = ["flops_per_token"]
