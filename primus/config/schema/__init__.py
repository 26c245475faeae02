"""Every configuration key: its type, bounds, default, meaning, and the stages it touches."""

from primus.config.schema.settings import Settings

__all__ = ["Settings"]
