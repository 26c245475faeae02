"""Which nodes are slow or broken, by what was measured on all of them. It measures nothing.

Each rule is a generator of findings. Where no absolute value is given, a node is held against the
median of all: more than half of the nodes are taken to be healthy.
"""

from __future__ import annotations

from primus.artifacts.preflight import Finding
from primus.health.links import of_links
from primus.health.measured import Measured, Needs
from primus.health.of_nodes import of_nodes
from primus.health.of_ranks import of_ranks


def findings(seen: Measured, needs: Needs) -> list[Finding]:
    """Everything that is wrong: what is broken first, then by the order of the nodes."""
    found = [*of_nodes(seen, needs), *of_ranks(seen, needs), *of_links(seen, needs)]
    order = {host: number for number, host in enumerate(seen.hosts)}
    return sorted(found, key=lambda f: (f.severity != "broken", order.get(f.node, -1)))
