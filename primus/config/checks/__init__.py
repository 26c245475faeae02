"""What must hold between keys, each rule a small function that yields the faults it finds."""

from __future__ import annotations

from primus.config.checks.fault import Context, Fault
from primus.config.checks.fits import device_memory, published
from primus.config.checks.partial import Partial
from primus.config.checks.rules import ARCHITECTURE, LAYOUT, PUBLISHED, REST, broken
from primus.config.schema.settings import Settings

__all__ = ["Context", "Fault", "Partial", "faults"]


def faults(settings: Settings | Partial, context: Context) -> list[Fault]:
    """Every fault that any rule finds.

    What follows from a sound model and layout is asked only where both are sound.
    """
    model, ranks = broken(ARCHITECTURE, settings, context), broken(LAYOUT, settings, context)
    found = [*ranks, *model, *broken(REST, settings, context)]
    if not model:
        found += broken((published,), settings, context)
    if not model and not ranks:
        found += broken((device_memory, *PUBLISHED), settings, context)
    return found
