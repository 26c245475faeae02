"""What must not be shown: tokens of this process's environment, and what steers a terminal."""

from __future__ import annotations

import os
import re

_SECRET = re.compile(r"TOKEN(?!I[SZ])|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY", re.IGNORECASE)
# Of an address, as of a proxy: its user and password.
_USER = re.compile(r"(?<=://)[^\s/@]+:[^\s/@]+(?=@)")
# A shorter value is no token, and stands in many texts by chance.
_SHORTEST = 8
# Where a secret is kept is none.
_PLACES = ("_PATH", "_FILE", "_DIR")


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name is likely to hold a secret."""
    return bool(_SECRET.search(name))


def hide(text: str) -> str:
    """A text for people and files, the name of a variable in place of a secret that it holds."""
    found = [
        (name, value)
        for name, value in os.environ.items()
        if is_secret_name(name) and not name.endswith(_PLACES) and len(value) >= _SHORTEST
    ]
    # The longest first: one may be part of another.
    for name, value in sorted(found, key=lambda item: (-len(item[1]), item[0])):
        text = text.replace(value, f"<{name}>")
    return _USER.sub("<user>", text)


def printable(text: str, *, keep: str = "") -> str:
    """A text without what would steer a terminal; on one line, unless `keep` holds line ends."""
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)
