"""Valid files, damaged; and what may come out of a parser that reads them."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import hypothesis
import psutil
from hypothesis import HealthCheck
from hypothesis import strategies as st

from primus.artifacts.manifest import Manifest
from primus.errors import PrimusError
from primus.slurm.queue import QueueError

OURS = (PrimusError, QueueError)
# `PRIMUS_FUZZ=2000 pytest tests/fuzz` looks longer.
EXAMPLES = int(os.environ.get("PRIMUS_FUZZ", "8"))
# Of the processor, for one example; a parser needs some milliseconds.
SECONDS = 10
MEMORY = 1 << 30
LONGEST_MESSAGE = 20_000

fuzz = hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    # The tests' own directories and the small roots serve all examples.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=EXAMPLES <= 8,
    database=None,
)

# What no editor writes, and what parsers stumble over.
ODD = [
    *(
        b"\x00",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\r",
        b"\n",
        b"\n\n",
        b"\x85",
        b"\t",
    ),
    *("\u2028".encode(), "\u202e".encode(), "\uff10".encode(), "²".encode(), "é".encode()),
    *(b"\\ud800", b"\\u0000", b'"', b"'", b"`", b"\\", b",", b":", b"{", b"}", b"[", b"]", b"|"),
    *(
        b"null",
        b"true",
        b"~",
        b"-",
        b"--",
        b"-1",
        b"0",
        b"00",
        b"0x10",
        b"1_0",
        b"1e999",
        b"-1e-999",
    ),
    *(b"NaN", b"Infinity", b".inf", b".nan", b"1:2:3", b"2001-01-01", b"9" * 400, b"9" * 5000),
    *(
        b"../..",
        b"/",
        b"$(id)",
        b"${HOME}",
        b"${",
        b"!!python/name:os.system",
        b"&a [*a]",
        b"<<: *a",
    ),
    *(b"[" * 3000, b'{"a":' * 3000, b"{a: " * 3000, b"- " * 3000, b"a" * 100_000, b"\n" * 3000),
]
_NUMBER = re.compile(rb"-?\d+(\.\d+)?([eE][-+]?\d+)?")


@st.composite
def damaged(draw: st.DrawFn, examples: Sequence[bytes]) -> bytes:
    """One of `examples`, changed in one to three places."""
    content = draw(st.sampled_from(list(examples)))
    for _ in range(draw(st.integers(1, 3))):
        content = draw(st.sampled_from(_CHANGES))(draw, content, examples)
    return content


def _place(draw: st.DrawFn, content: bytes) -> int:
    return draw(st.integers(0, len(content)))


def _span(draw: st.DrawFn, content: bytes) -> tuple[int, int]:
    ends = sorted((_place(draw, content), _place(draw, content)))
    return ends[0], ends[1]


def _flip(draw: st.DrawFn, content: bytes, _: Sequence[bytes]) -> bytes:
    if not content:
        return content
    at = draw(st.integers(0, len(content) - 1))
    return content[:at] + bytes([content[at] ^ 1 << draw(st.integers(0, 7))]) + content[at + 1 :]


def _cut(draw: st.DrawFn, content: bytes, _: Sequence[bytes]) -> bytes:
    return content[: _place(draw, content)]


def _remove(draw: st.DrawFn, content: bytes, _: Sequence[bytes]) -> bytes:
    first, last = _span(draw, content)
    return content[:first] + content[last:]


def _repeat(draw: st.DrawFn, content: bytes, _: Sequence[bytes]) -> bytes:
    first, last = _span(draw, content)
    return content[:last] + content[first:]


def _splice(draw: st.DrawFn, content: bytes, examples: Sequence[bytes]) -> bytes:
    other = draw(st.sampled_from(list(examples)))
    return content[: _place(draw, content)] + other[_place(draw, other) :]


def _insert(draw: st.DrawFn, content: bytes, _: Sequence[bytes]) -> bytes:
    at = _place(draw, content)
    return content[:at] + draw(st.sampled_from(ODD) | st.binary(max_size=8)) + content[at:]


def _number(draw: st.DrawFn, content: bytes, _: Sequence[bytes]) -> bytes:
    found = list(_NUMBER.finditer(content))
    if not found:
        return content
    chosen = draw(st.sampled_from(found))
    return content[: chosen.start()] + draw(st.sampled_from(ODD)) + content[chosen.end() :]


def _word(draw: st.DrawFn, content: bytes, _: Sequence[bytes]) -> bytes:
    """Another value of another type where one word stood."""
    found = list(re.finditer(rb'"[^"\n]*"|[\w.-]+', content))
    if not found:
        return content
    chosen = draw(st.sampled_from(found))
    new = draw(st.sampled_from([b"null", b"[]", b"{}", b'""', b"1", b"-1", b"1.5", b"true", *ODD]))
    return content[: chosen.start()] + new + content[chosen.end() :]


def _line(draw: st.DrawFn, content: bytes, _: Sequence[bytes]) -> bytes:
    """A line removed, or there twice."""
    lines = content.splitlines(keepends=True)
    if not lines:
        return content
    at = draw(st.integers(0, len(lines) - 1))
    times = draw(st.sampled_from([0, 2]))
    return b"".join([*lines[:at], *[lines[at]] * times, *lines[at + 1 :]])


def _value(draw: st.DrawFn, content: bytes, _: Sequence[bytes]) -> bytes:
    """Of JSON, or of a line of JSON: another value in one place, or none."""
    lines = content.split(b"\n") if content.count(b"\n}") == 0 else [content]
    number = draw(st.integers(0, len(lines) - 1))
    try:
        top = {"": json.loads(lines[number])}
    except (ValueError, RecursionError):
        return content
    places = list(_places(top))
    group, name = places[draw(st.integers(0, len(places) - 1))]
    if draw(st.booleans()) and group is not top:
        del group[name]
    else:
        group[name] = draw(st.sampled_from(_VALUES))
    lines[number] = json.dumps(top[""]).encode()
    return b"\n".join(lines)


_VALUES: list[Any] = [
    *(None, True, [], {}, "", "x", "../x", "/etc/passwd", "\ud800", "\x1b[2J\n", 0, -1, 1.5, 1e300),
    *(
        float("nan"),
        float("inf"),
        10**400,
        "9" * 400,
        [1],
        ["x"],
        {"x": 1},
        [[]],
        [{}],
        "x" * 10_000,
    ),
]


def _places(group: Any) -> Iterator[tuple[Any, Any]]:
    """Every group and the name or number of a value in it."""
    for name in list(group) if isinstance(group, dict) else range(len(group)):
        yield group, name
        if isinstance(group[name], dict | list):
            yield from _places(group[name])


_CHANGES: list[Callable[[st.DrawFn, bytes, Sequence[bytes]], bytes]] = [
    *(
        _flip,
        _cut,
        _remove,
        _repeat,
        _splice,
        _insert,
        _number,
        _word,
        _word,
        _line,
        _value,
        _value,
        _value,
    ),
]


def refuses_or_reads(call: Callable[[], Any]) -> None:
    """Call a parser: it may return, or raise an error of this project; soon, and in little memory.

    The message may not be a wall of text, and holds nothing that steers a terminal.
    """
    with _bounded():
        try:
            call()
        except OURS as error:
            said = str(error)
        else:
            return
    assert len(said) < LONGEST_MESSAGE, f"a message of {len(said)} characters: {said[:200]}"
    assert "\x1b" not in said
    assert "\x00" not in said


@contextmanager
def _bounded() -> Iterator[None]:
    def too_long(_: int, __: FrameType | None) -> None:
        raise AssertionError(f"takes more than {SECONDS} s of the processor")

    before = signal.signal(signal.SIGVTALRM, too_long)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    allowed = psutil.Process().memory_info().vms + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (allowed, limits[1]))
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


_PLAIN: dict[Any, Any] = {str: "text", int: 3, float: 0.5, bool: True, Any: 1, type(None): None}


def example(annotation: Any) -> Any:
    """A plain value of a type."""
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return parts[0]
    if origin in (Annotated, Union, types.UnionType):
        return example(parts[0])
    if origin is dict:
        return {"name": example(parts[1])}
    if origin is tuple and ... not in parts:
        return [example(part) for part in parts]
    if origin in (list, tuple):
        return [example(parts[0])] * 2
    fields: dict[str, Any] = annotation.model_fields
    return {name: example(field.annotation) for name, field in fields.items()}


def manifest(kind: type[Manifest]) -> bytes:
    """A valid manifest as its file holds it."""
    head = {"kind": kind.kind, "schema_version": kind.schema_version}
    return json.dumps(head | example(kind), indent=2).encode()
