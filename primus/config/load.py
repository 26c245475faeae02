"""From the layers of an experiment to its resolved settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from primus.config import checks, layers, problems
from primus.config.derive import derived
from primus.config.fields import home_of
from primus.config.layers import Kind, Layer
from primus.config.merge import merge
from primus.config.schema.keys import STAGES, Stage
from primus.config.schema.settings import Settings
from primus.config.yaml_file import Document, KeyPath
from primus.errors import ConfigError, Problem


@dataclass(frozen=True)
class Resolved:
    """A checked experiment.

    Attributes:
        sources: for each key that a layer sets, dotted, where: `file:line` or `--config`.
    """

    settings: Settings
    sources: Mapping[str, str]

    def source(self, dotted: str) -> str:
        """Where the value of a key comes from; "derived" where it follows from
        other keys; "default" where no layer sets it."""
        return self.sources.get(dotted, "default")


def experiments(root: Path = Path()) -> list[str]:
    """Names of all experiments.

    Raises:
        ConfigError: a file under configs/ has a name that cannot become part of a path.
    """
    if wrong := bad_names("configs", root):
        raise ConfigError(wrong)
    return layers.names_in(root / "configs")


def bad_names(folder: str, root: Path = Path()) -> list[Problem]:
    """One for each YAML file in `folder` whose name cannot become part of a path."""
    why, fix = problems.NOT_A_NAME
    return [
        Problem(file=f"{folder}/{name}.yaml", key="", value=problems.show(name), why=why, fix=fix)
        for name in layers.names_in(root / folder)
        if not layers.is_name(name)
    ]


def load(
    experiment: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    root: Path = Path(),
    stages: Collection[Stage] = STAGES,
) -> Resolved:
    """Resolve and check an experiment.

    Args:
        experiment: name of the file under configs/.
        overrides: values from the command line.
        root: directory that holds configs/ and against which data paths are read.
        stages: the stages that are to run; input files are looked for only where one reads them.

    Raises:
        ConfigError: every mistake in every layer, at once.
    """
    stack, hardware = _read_layers(experiment, overrides or {}, root)
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for layer in stack:
        merged = merge(merged, layer.values)
        sources |= _sources(layer)
    merged |= {"experiment": experiment}
    if hardware is not None:
        merged["hardware"] = hardware
    found = [problem for layer in stack for problem in layer.problems]
    wrong = {name for layer in stack for name in layer.wrong}
    settings, missing = _validate(merged, stack, wrong)
    found += missing
    resolved = Resolved(settings, sources) if settings else None
    context = checks.Context(root=root, stages=frozenset(stages))
    view: Settings | checks.Partial = settings or checks.Partial(merged, wrong)
    file = f"configs/{experiment}.yaml"
    for fault in checks.faults(view, context):
        found.append(_problem(fault, merged, sources, file))
    if found or resolved is None:
        raise ConfigError(list(dict.fromkeys(found)))
    filled = derived(resolved.settings)
    settings = resolved.settings.model_copy(update=filled)
    return Resolved(settings, sources | dict.fromkeys(filled, "derived"))


def _read_layers(
    experiment: str, overrides: Mapping[str, Any], root: Path
) -> tuple[list[Layer], str | None]:
    """The layers from lowest to highest, and the name of the hardware."""
    top = layers.read_layer("experiment", experiment, root)
    command = layers.command_line_layer(overrides)
    if top.document.broken:
        raise ConfigError([*top.problems, *command.problems])
    stack: list[Layer] = []
    names: dict[str, str | None] = {}
    kinds: tuple[Kind, ...] = ("model", "hardware", "recipe")
    for kind in kinds:
        key = str(kind)
        owner = command if key in command.values else top
        if key in command.wrong | top.wrong:
            names[key] = None
            continue
        name = owner.values.get(key, "auto" if key == "hardware" else None)
        if key == "hardware" and name == "auto":
            name = layers.resolve_hardware(owner, layers.names_in(root / layers.FOLDERS[kind]))
        names[key] = name
        if name is not None:
            stack.append(_named_layer(kind, name, owner, root))
    return [*stack, top, command], names["hardware"]


def _named_layer(kind: Kind, name: str, owner: Layer, root: Path) -> Layer:
    """Read a named file; one that does not exist is a mistake of the key."""
    folder = layers.FOLDERS[kind]
    known = layers.names_in(root / folder)
    if name in known:
        return layers.read_layer(kind, name, root)
    fix = problems.did_you_mean(name, known) or f"known: {problems.listed(known)}"
    owner.complain((kind,), f"there is no {folder}/{name}.yaml", fix, name)
    return Layer(kind, Document(f"{folder}/{name}.yaml", broken=True), wrong={kind})


def _sources(layer: Layer) -> dict[str, str]:
    """Where each key of a layer stands, groups and the keys in them."""
    found: dict[str, str] = {}

    def visit(values: Mapping[str, Any], path: KeyPath) -> None:
        for name, value in values.items():
            here = (*path, name)
            found[".".join(here)] = layer.document.where(here)
            if isinstance(value, dict):
                visit(value, here)

    visit(layer.values, ())
    return found


def _validate(
    merged: dict[str, Any], stack: Sequence[Layer], wrong: set[str]
) -> tuple[Settings | None, list[Problem]]:
    """The settings, or None and the keys that nobody sets; `wrong` grows by those."""
    try:
        settings = Settings.model_validate(merged)
        return (None if wrong else settings), []
    except ValidationError as error:
        details = error.errors(include_url=False)
    found: list[Problem] = []
    for detail in details:
        path = tuple(str(part) for part in detail["loc"])
        blame = _home_layer(stack, path[0])
        if path[0] not in wrong and blame is not None:
            why, fix = problems.explain(detail, path)
            file = blame.document.where(path)
            found.append(Problem(file=file, key=".".join(path), value="", why=why, fix=fix))
    wrong.update(str(detail["loc"][0]) for detail in details)
    return None, found


def _home_layer(stack: Sequence[Layer], name: str) -> Layer | None:
    """The file in which a missing key belongs; None where that file could not be read."""
    kinds = {layer.kind: layer for layer in stack}
    home = kinds.get("model" if home_of(name) == "model" else "experiment")
    if home_of(name) == "hardware":
        home = kinds.get("hardware")
    recipe = kinds.get("recipe")
    if home_of(name) == "experiment" and recipe is not None and recipe.document.broken:
        return None
    return None if home is None or home.document.broken else home


def _problem(
    fault: checks.Fault, merged: Mapping[str, Any], sources: Mapping[str, str], file: str
) -> Problem:
    value: Any = merged
    for name in fault.key.split("."):
        if isinstance(value, list) and name.isdigit():
            value = value[int(name)]
        else:
            value = value.get(name) if isinstance(value, dict) else None
    where = sources.get(fault.key) or sources.get(fault.key.split(".")[0]) or file
    shown = "" if value is None else problems.show(value)
    return Problem(file=where, key=fault.key, value=shown, why=fault.why, fix=fault.fix)
