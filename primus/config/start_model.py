"""What a key names that takes a directory here, or a name of the hub; above all `load_hf`."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from primus.config.families import nearest
from primus.config.families.config_json import mismatches
from primus.files import read_json

_HUB = re.compile(
    r"(?P<repo>(?P<owner>[A-Za-z0-9][\w.-]*)/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w.-]+))?"
)
# Of a model in safetensors; code and other formats are never read.
CONFIG, INDEX, WEIGHTS = "config.json", "model.safetensors.index.json", "*.safetensors"


class HubModel(NamedTuple):
    """A repository of the hub; without a revision its newest commit."""

    repo: str
    revision: str | None


def hub_model(load_hf: str, root: Path = Path()) -> HubModel | None:
    """The repository that `load_hf` names; None where it names a directory.

    A name whose first part is a directory is a path, be it mistyped; with a revision it is none.
    """
    match = _HUB.fullmatch(load_hf)
    if match is None or os.path.isdir(root / load_hf):
        return None
    if match["revision"] is None and os.path.isdir(root / match["owner"]):
        return None
    return HubModel(match["repo"], match["revision"])


def files(load_hf: str, root: Path = Path()) -> list[str]:
    """The files of a directory that training reads; none for a model of the hub."""
    if hub_model(load_hf, root):
        return []
    directory = root / load_hf
    names = [CONFIG, *([INDEX] if (directory / INDEX).is_file() else [])]
    names += sorted(path.name for path in directory.glob(WEIGHTS))
    return [str(Path(load_hf) / name) for name in names]


def mistakes(settings: Any, root: Path) -> Iterator[tuple[str, str, str]]:
    """Key, reason and fix for each thing that keeps a run from starting there.

    The config.json of a directory is compared here; that of the hub when it is downloaded.
    """
    load_hf: str = settings.load_hf
    if ".." in Path(load_hf).parts:
        yield "load_hf", "climbs out of the root by '..'", "write the absolute path"
        return
    if hub_model(load_hf, root):
        return
    directory = root / load_hf
    if not os.path.isdir(directory):
        yield "load_hf", *_no_model(load_hf, root)
        return
    try:
        config = read_json(directory / CONFIG)
    except (OSError, ValueError) as error:
        yield "load_hf", f"has no readable config.json ({error})", "name a model's directory"
        return
    if not isinstance(config, dict):
        yield "load_hf", "has a config.json that is no JSON object", "name a model's directory"
        return
    if not any(directory.glob(WEIGHTS)):
        yield "load_hf", "has no *.safetensors; other formats are not read", "convert the model"
    family, objections = nearest(settings)
    if not objections:
        for key, why, fix in mismatches(config, family, settings):
            yield key or "load_hf", why, fix


def _no_model(load_hf: str, root: Path) -> tuple[str, str]:
    if "/" not in load_hf and not load_hf.startswith("~"):
        fix = "name a directory, or a model of the hub as org/name"
        return "is neither a directory nor a hub id", fix
    why, fix = no_directory(load_hf, root)
    if _HUB.fullmatch(load_hf):
        fix += f" (a model of the hub: write {load_hf}@main)"
    return why, fix


def is_path(text: str) -> bool:
    """Whether a text, be it mistyped, can be no name of the hub."""
    return text.startswith((".", "/", "~")) or text.count("/") > 1


def no_directory(text: str, root: Path) -> tuple[str, str]:
    """Why a path is none of a directory, and the fix."""
    if text.startswith("~"):
        return "'~' is not expanded in a configuration", "write the absolute path"
    if os.path.exists(root / text):
        return "is a file, and a directory is wanted", "name the directory that holds it"
    near = _near(text, root)
    fix = f"did you mean {near}?" if near else "name one that is there"
    return "there is no such directory", fix


def _near(text: str, root: Path) -> str:
    """The path with its first part that is not there mended; empty where nothing is near."""
    path = Path(text)
    missing = next(p for p in (*reversed(path.parents), path) if not os.path.isdir(root / p))
    try:
        there = [other.name for other in (root / missing.parent).iterdir() if other.is_dir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(missing.name, there, n=1)
    return str(missing.parent / near[0] / path.relative_to(missing)) if near else ""
