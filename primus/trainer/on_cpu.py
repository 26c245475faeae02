"""Makes Megatron-core usable on CPUs when it is imported: for an agent, which only imports."""

from __future__ import annotations

from primus.trainer.platform import install

install("cpu")
