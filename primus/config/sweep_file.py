"""The points of a sweep, as `configs/sweeps/<name>.yaml` lists them."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from primus.config.fields import field_at, group_of
from primus.config.layers import is_name, names_in
from primus.config.problems import did_you_mean, explain_unknown, listed, show
from primus.config.sweep_names import SWEEPS
from primus.config.values import from_command_line
from primus.config.yaml_file import Document, KeyPath, read_yaml
from primus.errors import ConfigError, Problem
from primus.hidden import printable

MAX_POINTS = 100
_KEYS = ("experiment", "grid", "points", "max_points")
_WIDEST = 40
# A value as it is written, and where.
_Written = tuple[Any, KeyPath]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One set of values.

    Attributes:
        label: what tells it from the sweep's other points.
        overrides: of the experiment, in groups, as `--config` would give them.
        values: the same by dotted key.
        where: `file:line` of each key of `values`.
    """

    label: str
    overrides: Mapping[str, Any]
    values: Mapping[str, Any]
    where: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A checked file; its points have not been loaded yet.

    Attributes:
        varied: dotted keys that have not the same value in all points.
    """

    name: str
    file: str
    experiment: str
    points: tuple[Point, ...]
    varied: tuple[str, ...]


def read_sweep(name: str, root: Path = Path()) -> Sweep:
    """Read the file of a sweep.

    Raises:
        ConfigError: there is no such sweep, or every mistake in the file that shows without
            loading its experiment.
    """
    known = names_in(root / SWEEPS)
    if not is_name(name) or name not in known:
        fix = did_you_mean(name, known) or f"known: {listed(known)}"
        why = f"there is no sweep {show(name)}"
        raise ConfigError([Problem(file=SWEEPS, key="", value="", why=why, fix=fix)])
    reader = _Reader(read_yaml(root / SWEEPS / f"{name}.yaml", f"{SWEEPS}/{name}.yaml"), root)
    rows = reader.rows()
    if reader.problems:
        raise ConfigError(list(dict.fromkeys(reader.problems)))
    return _labelled(name, reader.document, rows)


class _Reader:
    """Reads a document and notes what is wrong with it."""

    def __init__(self, document: Document, root: Path) -> None:
        self.document = document
        self.problems = list(document.problems)
        self._root = root

    def complain(self, path: KeyPath, why: str, fix: str, value: Any = ...) -> None:
        """Note a mistake of the key at `path`."""
        shown = "" if value is ... else show(value)
        key, where = ".".join(path), self.document.where(path)
        self.problems.append(Problem(file=where, key=key, value=shown, why=why, fix=fix))

    def rows(self) -> list[dict[str, _Written]]:
        """The points: of each key as it is written its value, and where that stands."""
        values = self.document.values
        if self.document.broken:
            return []
        for name in values:
            if name not in _KEYS:
                near = did_you_mean(name, _KEYS)
                self.complain((name,), "unknown key", near or f"known here: {listed(_KEYS)}")
        self._experiment(values.get("experiment"))
        grid, points = self._grid(values.get("grid", ...)), self._points(values.get("points", ...))
        if "grid" not in values and "points" not in values:
            fix = "add 'grid:' with a list of values for each key, or 'points:' with a list"
            self.complain((), "has no points", fix)
        for key, path in _both(grid, points):
            why = "stands under grid and under points"
            self.complain(path, why, f"keep {key} in one of the two; a group key by key, with dots")
        if self.problems or self._too_many(len(points) * math.prod(map(len, grid.values()))):
            return []
        products = itertools.product(*grid.values())
        rest = [dict(zip(grid, chosen, strict=True)) for chosen in products]
        return [point | chosen for point in points for chosen in rest]

    def _experiment(self, name: Any) -> None:
        known = names_in(self._root / "configs")
        if name is None:
            why = "required key is missing"
            self.complain(("experiment",), why, "add 'experiment: ...' (whose keys are varied)")
        elif not is_name(name) or name not in known:
            fix = did_you_mean(str(name), known) or f"known: {listed(known)}"
            self.complain(("experiment",), "there is no such experiment", fix, name)

    def _grid(self, grid: Any) -> dict[str, list[_Written]]:
        if grid is ...:
            return {}
        if not isinstance(grid, dict):
            self.complain(("grid",), "must be a group of 'key: [values]' lines", "write one", grid)
            return {}
        if not grid:
            self.complain(("grid",), "is empty", "name keys and their values, or remove it")
        self._refuse_overlap(grid, ("grid",))
        found: dict[str, list[_Written]] = {}
        for key, values in grid.items():
            path: KeyPath = ("grid", key)
            self._known_key(key, path)
            if not isinstance(values, list):
                why = "must be a list, also of one value"
                self.complain(path, why, f"write [{_text(values)}]", values)
            elif not values:
                why = "is an empty list, which makes a grid without points"
                self.complain(path, why, "name values, or remove the key")
            else:
                found[key] = [(value, (*path, str(i))) for i, value in enumerate(values)]
        return found

    def _points(self, points: Any) -> list[dict[str, _Written]]:
        if points is ...:
            return [{}]
        if not isinstance(points, list) or not points:
            fix = "write '- {key: value, ...}' lines, or remove the key"
            self.complain(("points",), "must be a list of at least one point", fix, points)
            return []
        found: list[dict[str, _Written]] = []
        for number, point in enumerate(points):
            path: KeyPath = ("points", str(number))
            if not isinstance(point, dict):
                why = "must be a group of 'key: value' lines"
                self.complain(path, why, "write {key: value, ...}", point)
                continue
            self._refuse_overlap(point, path)
            for key in point:
                self._known_key(key, (*path, key))
            found.append({key: (value, (*path, key)) for key, value in point.items()})
        return found

    def _known_key(self, key: str, path: KeyPath) -> None:
        if key == "experiment":
            fix = f"remove it; write one file under {SWEEPS} for each experiment"
            self.complain(path, "cannot be varied: a sweep is of one experiment", fix)
        elif field_at(tuple(key.split("."))) is None:
            self.complain(path, *explain_unknown(tuple(key.split("."))))

    def _refuse_overlap(self, keys: Mapping[str, Any], path: KeyPath) -> None:
        for key in keys:
            for group in (other for other in keys if key.startswith(f"{other}.")):
                self.complain((*path, key), f"is a part of {group}, too", "keep one of the two")

    def _too_many(self, count: int) -> bool:
        most = self.document.values.get("max_points", MAX_POINTS)
        if not isinstance(most, int) or isinstance(most, bool) or most < 1:
            self.complain(("max_points",), "must be a whole number >= 1", "write one", most)
        elif count > most:
            why = f"makes {count} points, and at most {most} are allowed"
            fix = f"name fewer values, or write max_points: {count}"
            self.complain(("max_points",) if "max_points" in self.document.values else (), why, fix)
        return bool(self.problems)


def _both(
    grid: Mapping[str, Any], points: Sequence[Mapping[str, _Written]]
) -> Iterator[tuple[str, KeyPath]]:
    """Keys of points that are in the grid, too: the same, a group of it, or a member."""
    for key, (_, path) in (item for point in points for item in point.items()):
        if any(overlap(key, other) for other in grid):
            yield key, path


def overlap(key: str, other: str) -> bool:
    """Whether two dotted keys are the same, or one is a group with the other in it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _labelled(name: str, document: Document, rows: Sequence[Mapping[str, _Written]]) -> Sweep:
    """Points told apart by the keys that vary; where none does, by all."""
    overrides = [from_command_line({key: value for key, (value, _) in row.items()}) for row in rows]
    values = [dict(flat(one)) for one in overrides]
    keys = list(dict.fromkeys(key for one in values for key in one))
    varied = [k for k in keys if any(k not in v or v[k] != values[0].get(k) for v in values)]
    points = []
    for row, given, own in zip(rows, overrides, values, strict=True):
        told = [f"{key}={_text(own[key])}" for key in varied or keys if key in own]
        paths = {key: _written(key, row) for key in own}
        points.append(
            Point(
                label=printable(" ".join(told)) or "as it is",
                overrides=given,
                values=own,
                where={key: document.where(path) for key, path in paths.items()},
            )
        )
    return Sweep(
        name=name,
        file=document.name,
        experiment=document.values["experiment"],
        points=tuple(points),
        varied=tuple(varied),
    )


def flat(values: Mapping[str, Any], path: KeyPath = ()) -> Iterator[tuple[str, Any]]:
    """Values by dotted key; what is a group of free names is one value."""
    for name, value in values.items():
        here = (*path, name)
        field = field_at(here)
        if isinstance(value, Mapping) and field is not None and group_of(field) is not None:
            yield from flat(value, here)
        else:
            yield ".".join(here), value


def _written(key: str, row: Mapping[str, _Written]) -> KeyPath:
    """Where a dotted key stands: by itself, or in a group."""
    for name, (_, path) in row.items():
        if key == name or key.startswith(f"{name}."):
            return (*path, *key[len(name) :].strip(".").split(".")) if key != name else path
    return ()


def _text(value: Any) -> str:
    """A value in a label."""
    if isinstance(value, float):
        return f"{value:.12g}"
    short = isinstance(value, str) and len(value) <= _WIDEST
    text = value if short else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"
