"""Read a YAML mapping from an untrusted file, with the line on which each key stands.

Built on PyYAML's event stream and not on its node tree: libyaml's composer recurses in C, and a
few hundred kilobytes of `[` end the process with a segmentation fault.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from primus.errors import Problem

_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SCALARS: Any = yaml.SafeLoader("")
_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float")}
_OTHER_BASES = re.compile(r"[-+]?(\d[\d_]*(:\d+)+(\.[\d_]*)?|0[0-7_]+)")
_LARGEST_FILE = 1 << 20
_DEEPEST = 16

KeyPath = tuple[str, ...]


@dataclass
class Document:
    """The content of one file.

    Attributes:
        values: plain dictionaries, lists, strings, numbers, booleans and None.
        lines: the line of each key (and list item) by its path.
        broken: the file could not be read to its end; `values` holds a part at best.
    """

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    broken: bool = False

    def where(self, path: KeyPath) -> str:
        """`file:line` of the key, or of the nearest group around it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return f"{self.name}:{self.lines[path[:length]]}"
        return self.name


def read_yaml(path: Path, name: str) -> Document:
    """Read `path`, called `name` in messages; every mistake is in `problems`, none is raised."""
    try:
        content = path.read_bytes()
    except OSError as error:
        why = f"cannot be read: {error.strerror}"
        problem = Problem(file=name, key="", value="", why=why, fix="make it a readable file")
        return Document(name, problems=[problem], broken=True)
    if len(content) > _LARGEST_FILE:
        why = f"has {len(content)} bytes; a configuration file has at most {_LARGEST_FILE}"
        problem = Problem(file=name, key="", value="", why=why, fix="name the right file")
        return Document(name, problems=[problem], broken=True)
    return parse_yaml(content, name)


def parse_yaml(content: bytes | str, name: str) -> Document:
    """Parse text that must hold one mapping (or nothing)."""
    builder = _Builder(Document(name))
    try:
        for event in yaml.parse(content, Loader=_PARSER):
            builder.take(event)
            if builder.document.broken:
                break
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        why = f"not YAML: {getattr(error, 'problem', None) or 'unreadable characters'}"
        fix = "mend the line (indent with spaces, quote text that holds ': ' or '#')"
        builder.document.problems.append(
            Problem(file=where, key="", value="", why=why.replace("\n", " "), fix=fix)
        )
        builder.document.broken = True
    return builder.document


def scalar(text: str) -> Any:
    """What YAML reads from plain text: None, a boolean, a number, or the text itself.

    Not YAML 1.1's numbers to the base of 60 and of 8, which nobody means who writes them: of
    `1:00:00` it makes 3600, of `0123` 83.
    """
    if _OTHER_BASES.fullmatch(text):
        return text
    tag = _SCALARS.resolve(yaml.ScalarNode, text, (True, False))
    if tag not in _PLAIN_TAGS:
        return text
    try:
        return _SCALARS.construct_object(yaml.ScalarNode(tag, text))
    except ValueError:
        return text


@dataclass
class _Open:
    """A mapping or list that has not ended yet."""

    value: Any
    path: KeyPath
    key: str | None = None


class _Builder:
    """Builds plain values from events, without recursion."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self._open: list[_Open] = []
        self._documents = 0

    def take(self, event: Any) -> None:
        """Handle one event."""
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                self._stop(event, "holds a second document", "keep one, remove the line '---'")
        elif isinstance(event, yaml.AliasEvent):
            self._stop(event, f"uses the alias *{event.anchor}", "write the value out")
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            self._start(event)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self._open.pop()
        elif isinstance(event, yaml.ScalarEvent):
            self._scalar(event)

    def _start(self, event: Any) -> None:
        self._refuse_tag(event)
        if len(self._open) >= _DEEPEST:
            key = self._open[0].key or self._open[1].path[0]
            self._problem(event, key, f"is nested deeper than {_DEEPEST} levels", "write it flat")
            self.document.broken = True
            return
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        value: Any = {} if is_mapping else []
        if not self._open:
            if is_mapping:
                self.document.values = value
                self._open.append(_Open(value, ()))
            else:
                self._stop(event, "is a list", "write 'key: value' lines")
            return
        if self._awaits_key():
            self._stop(event, "has a key that is not plain text", "write the key as a word")
            return
        self._open.append(_Open(value, self._put(event, value)))

    def _scalar(self, event: Any) -> None:
        self._refuse_tag(event)
        plain = event.implicit[0]  # neither quoted nor tagged
        if not self._open:
            if event.value:
                self._stop(event, "is not a mapping", "write 'key: value' lines")
        elif self._awaits_key():
            self._key(event)
        else:
            self._put(event, scalar(event.value) if plain else event.value)

    def _awaits_key(self) -> bool:
        top = self._open[-1]
        return isinstance(top.value, dict) and top.key is None

    def _key(self, event: Any) -> None:
        top, line = self._open[-1], event.start_mark.line + 1
        top.key = event.value
        path = (*top.path, event.value)
        if path in self.document.lines:
            first = self.document.lines[path]
            why = f"stands twice, first on line {first}"
            self._problem(event, ".".join(path), why, "remove one of the two")
        self.document.lines[path] = line

    def _put(self, event: Any, value: Any) -> KeyPath:
        top = self._open[-1]
        if isinstance(top.value, list):
            path = (*top.path, str(len(top.value)))
            top.value.append(value)
            self.document.lines[path] = event.start_mark.line + 1
            return path
        assert top.key is not None
        path = (*top.path, top.key)
        top.value[top.key], top.key = value, None
        return path

    def _refuse_tag(self, event: Any) -> None:
        if event.tag is not None and event.tag != "!":
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._stop(event, f"uses the tag {tag}", "write a plain value without a tag")

    def _stop(self, event: Any, why: str, fix: str) -> None:
        key = ".".join((*self._open[-1].path, self._open[-1].key or "")) if self._open else ""
        self._problem(event, key.rstrip("."), why, fix)
        self.document.broken = True

    def _problem(self, event: Any, key: str, why: str, fix: str) -> None:
        where = f"{self.document.name}:{event.start_mark.line + 1}"
        self.document.problems.append(Problem(file=where, key=key, value="", why=why, fix=fix))
