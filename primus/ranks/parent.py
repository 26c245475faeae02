"""Whether the agent of a rank still lives when the rank has come so far as to follow its end."""

from __future__ import annotations

import os

# Set for ranks by their agent: its process number.
AGENT = "PRIMUS_AGENT_PID"


def agent_is_gone() -> bool:
    """Whether this process has another parent by now than the agent that started it.

    The kernel tells of a parent's end only who has asked for it before. False without an agent.
    """
    agent = os.environ.get(AGENT)
    return agent is not None and int(agent) != os.getppid()
