"""A stand-in for podman's client: runs a container's command as an ordinary process.

Refuses a command line that names an unknown option, or a variable's value. What the environment
names by FAKE_PODMAN_LABEL is the owner of a container that is there already.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

KNOWN = (
    *("--rm", "--interactive", "--name=", "--label=", "--network=", "--uts=", "--pid=", "--ipc="),
    *("--security-opt=", "--workdir=", "--mount=", "--userns=", "--env=HOME=/tmp"),
)


def main() -> None:
    verb, *rest = sys.argv[1:]
    seen = Path(os.environ["FAKE_PODMAN_SEEN"])
    with seen.open("a") as stream:
        print(verb, *rest, file=stream)
    if verb == "inspect":
        label = os.environ.get("FAKE_PODMAN_LABEL")
        print(label or "")
        raise SystemExit(0 if label else 125)
    if verb == "rm":
        raise SystemExit(0)
    passed, place = [], 0
    while rest[place].startswith("--"):
        option = rest[place]
        if option.startswith("--env=") and "=" not in option.removeprefix("--env="):
            passed.append(option.removeprefix("--env="))
        elif not option.startswith(KNOWN):
            raise SystemExit(f"fake podman: {option}")
        place += 1
    image, *command = rest[place:]
    if image == "no-such-image":
        print("fake podman: no such image", file=sys.stderr)
        raise SystemExit(125)
    environment = {"PATH": os.environ["PATH"]} | {name: os.environ[name] for name in passed}
    process = subprocess.Popen(command, env=environment)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _: process.send_signal(number))
    raise SystemExit(process.wait())


if __name__ == "__main__":
    main()
