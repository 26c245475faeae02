"""From an experiment file of Primus to the values of one of this project."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from primus.config.fields import affects, home_of
from primus.config.layers import FOLDERS, is_name, names_in
from primus.config.problems import NOT_A_NAME, listed, show
from primus.config.schema.latent_attention import LatentAttention
from primus.config.schema.settings import Settings
from primus.config.yaml_file import read_yaml
from primus.errors import ConfigError
from primus.importing.convert import REFUSED, Row, Status, assumed, row
from primus.importing.source import Source, Variable, mistake, read_source
from primus.importing.tables import AROUND

_MODULE = ("modules", "pre_trainer")
_PRESET_FILE = "pre_trainer.yaml"
# Where Primus keeps the files that `model` names.
_MODEL_FILES = Path("primus/configs/models/megatron")
_PARALLEL = ("tensor_model", "pipeline_model", "context", "expert_model")
_BENCHMARK_ITERS = 100
_C4 = {"path": "allenai/c4", "name": "en"}


@dataclass
class Imported:
    """An experiment as read from Primus.

    Attributes:
        values: of configs/<name>.yaml.
        architecture: of configs/models/<model>.yaml; None where that file exists already.
    """

    name: str
    model: str
    values: dict[str, Any] = field(default_factory=dict)
    architecture: dict[str, Any] | None = None
    rows: list[Row] = field(default_factory=list)
    variables: dict[str, Variable] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def refused(self) -> list[Row]:
        """The keys that ask for something that is not done, or not known, here."""
        return [made for made in self.rows if made.status in REFUSED]


def import_experiment(
    path: Path, root: Path, given: Mapping[str, Any], name: str | None = None
) -> Imported:
    """Read an experiment of Primus.

    Args:
        root: directory that holds this project's configs/.
        given: keys of this project and their values, which win over those of the file.
        name: of the experiment; None: exp_name of the file.

    Raises:
        ConfigError: the file is not an experiment for Megatron pretraining, or its model is
            neither one of this project's nor found as a file of Primus.
    """
    source = read_source(path)
    module = _group(source, _MODULE)
    _expect(source, module, "framework", "megatron")
    _expect(source, module, "config", _PRESET_FILE)
    made = Imported(name or _name(source), _model(source, module), variables=source.variables)
    made.rows += _around(source, module)
    overrides = _group(source, (*_MODULE, "overrides"), optional=True)
    if not (root / FOLDERS["model"]).is_dir():
        fix = "run it in the root of the project, or name --output <root>/configs/NAME.yaml"
        raise mistake(str(root / FOLDERS["model"]), "", "there is no such folder", fix)
    known = made.model in names_in(root / FOLDERS["model"])
    below = Source("") if known else _model_source(path, source, made.model)
    made.variables |= below.variables
    _fill(made, overrides, source, below, root, given, known)
    made.warnings += _warnings(made, root if known else None)
    return made


def _fill(
    made: Imported,
    overrides: Mapping[str, Any],
    source: Source,
    below: Source,
    root: Path,
    given: Mapping[str, Any],
    known: bool,
) -> None:
    """Classify every key and lay the values over each other."""
    base = _architecture(root, made.model) if known else below.values
    context = {**base, **overrides, **given, "own_data": {"data_path", "hf_dataset"} & set(given)}
    context = {**{r.key: r.value for r in assumed(context, context)}, **context}
    under = {key: value for key, value in below.values.items() if key not in overrides}
    lower = [row(key, value, below.where((key,)), context) for key, value in under.items()]
    upper = [
        row(key, value, source.where((*_MODULE, "overrides", key)), context)
        for key, value in overrides.items()
    ]
    beneath = assumed({**below.values, **overrides, **given}, context)
    made.values = {"model": made.model}
    if "hardware" not in given:
        made.values["hardware"] = _hardware(made, source, root)
    architecture: dict[str, Any] = {}
    for step in (beneath, lower, upper):
        for one in step:
            made.rows.append(one)
            for key, value in one.to.items():
                in_model = not known and step is lower and home_of(key) == "model"
                (architecture if in_model else made.values)[key] = value
    _tokenizer_and_text(made, root, given)
    made.architecture = None if known else architecture
    _consequences(made, source, root, base if known else {}, given)
    for key, value in given.items():
        in_model = not known and home_of(key) == "model"
        (architecture if in_model else made.values)[key] = value
        made.rows.append(Row(key, value, "given", "--config", {key: value}))


def _group(source: Source, path: tuple[str, ...], optional: bool = False) -> dict[str, Any]:
    """The group of keys at a path."""
    value: dict[str, Any] = source.values
    for number, key in enumerate(path):
        inner = value.get(key)
        if inner is None and optional and number == len(path) - 1:
            return {}
        if not isinstance(inner, dict):
            at = path[: number + 1]
            why = f"{'.'.join(at)} is missing, or is no group of 'name: value' lines"
            fix = "name an experiment file of Primus: modules.pre_trainer.{framework,config,model}"
            raise mistake(source.where(at), "", why, fix)
        value = inner
    return value


def _expect(source: Source, module: Mapping[str, Any], key: str, wanted: str) -> None:
    path, found = (*_MODULE, key), module.get(key)
    if found != wanted:
        why = f"only {wanted} can be read"
        fix = "take one of Primus' Megatron pretraining experiments"
        raise mistake(source.where(path), ".".join(path), why, fix, found)


def _name(source: Source) -> str:
    name = source.values.get("exp_name")
    if not is_name(name):
        raise mistake(source.where(("exp_name",)), "exp_name", NOT_A_NAME[0], "name --output", name)
    return str(name)


def _model(source: Source, module: Mapping[str, Any]) -> str:
    path, model = (*_MODULE, "model"), module.get("model")
    stem = model.removesuffix(".yaml") if isinstance(model, str) else None
    if not is_name(stem):
        raise mistake(source.where(path), ".".join(path), NOT_A_NAME[0], "name a model", model)
    return str(stem)


def _around(source: Source, module: Mapping[str, Any]) -> list[Row]:
    """What stands outside the overrides."""
    rows = []
    for key, value in source.values.items():
        if key in AROUND:
            rows.append(Row(key, value, "dropped", source.where((key,)), reason=AROUND[key]))
        elif key == "exp_name":
            reason = "the experiment's name, unless --output gives another"
            rows.append(Row(key, value, "changed", source.where((key,)), reason=reason))
        elif key != "modules":
            reason = "is no key of Primus that is known here"
            rows.append(Row(key, value, "unknown", source.where((key,)), reason=reason))
    for key, value in source.values["modules"].items():
        if key != _MODULE[1]:
            where, reason = source.where(("modules", key)), "only pre_trainer is read"
            rows.append(Row(f"modules.{key}", value, "unsupported", where, reason=reason))
    for key, value in module.items():
        path = (*_MODULE, key)
        if key in ("framework", "config", "model"):
            to = {"model": str(value).removesuffix(".yaml")} if key == "model" else {}
            reason = "" if to else "Megatron-core is the one engine, pretraining the one task"
            status: Status = "changed" if to else "dropped"
            rows.append(Row(".".join(path), value, status, source.where(path), to, reason))
        elif key != "overrides":
            made = row(key, value, source.where(path), {})
            rows.append(Row(".".join(path), value, made.status, made.where, {}, made.reason))
    return rows


def _model_source(path: Path, source: Source, model: str) -> Source:
    """Primus' file of a model: beside the experiment, or in the tree of Primus around it."""
    places = [path.parent, *(above / _MODEL_FILES for above in path.resolve().parents)]
    for place in places:
        file = place / f"{model}.yaml"
        if file.is_file() and file.resolve() != path.resolve():
            return read_source(file)
    at = (*_MODULE, "model")
    why = f"there is no configs/models/{model}.yaml, and no {model}.yaml of Primus beside the file"
    fix = f"copy {_MODEL_FILES}/{model}.yaml and what it extends beside it"
    raise mistake(source.where(at), ".".join(at), why, fix)


def _architecture(root: Path, model: str) -> dict[str, Any]:
    name = f"{FOLDERS['model']}/{model}.yaml"
    return read_yaml(root / name, name).values


def _hardware(made: Imported, source: Source, root: Path) -> str:
    """The folder that Primus keeps the file in says what it was written for."""
    known = names_in(root / FOLDERS["hardware"])
    folder = source.folder.lower()
    name = folder if folder in known else "mi300x"
    reason = "the folder of the file" if folder in known else "Primus is written for it"
    made.rows.append(Row("hardware", name, "assumed", source.name, {"hardware": name}, reason))
    return name


def _tokenizer_and_text(made: Imported, root: Path, given: Mapping[str, Any]) -> None:
    """Text, and the tokenizer of our own experiment with the same model where none is named."""
    ours = f"configs/{made.model}.yaml"
    sibling = read_yaml(root / ours, ours).values if (root / ours).is_file() else {}
    added: dict[str, Any] = {}
    if "tokenizer_model" not in {**made.values, **given} and sibling.get("tokenizer_model"):
        added["tokenizer_model"] = sibling["tokenizer_model"]
    if not {"data_path", "hf_dataset"} & set(given):
        added["hf_dataset"] = dict(_C4)
        added["workers"] = 16
    same = "tokenizer_model" in added and "hf_dataset" in added and sibling.get("recipe") == "c4"
    added["dataset"] = sibling["dataset"] if same and sibling.get("dataset") else made.name
    for key, value in added.items():
        if key not in given:
            made.values[key] = value
            reason = f"as in {ours}" if key in sibling and same else "this project needs it"
            made.rows.append(Row(key, value, "assumed", ours, {key: value}, reason))


def _consequences(
    made: Imported,
    source: Source,
    root: Path,
    published: Mapping[str, Any],
    given: Mapping[str, Any],
) -> None:
    """What follows from the file's values, and would have to be written by hand otherwise."""
    values = {**published, **(made.architecture or {}), **made.values, **given}
    added: dict[str, tuple[Any, str]] = {}
    if published.get("multi_latent_attention") and not values["multi_latent_attention"]:
        for key in (LatentAttention.model_fields.keys() & published.keys()) - made.values.keys():
            default = LatentAttention.model_fields[key].default
            added[key] = (default, "multi_latent_attention is false")
    if _reshaped(made.values, published):
        reason = f"the architecture is not that of configs/models/{made.model}.yaml"
        added["published_parameters"] = (None, reason)
    nodes = _nodes(values, root)
    if nodes > 1:
        added["nodes"] = (nodes, "the fewest that the parallel sizes divide")
    for key, (value, reason) in added.items():
        if key not in given:
            made.values[key] = value
            made.rows.append(Row(key, value, "assumed", source.name, {key: value}, reason))


def _nodes(values: Mapping[str, Any], root: Path) -> int:
    """The fewest nodes on which the parallel sizes have whole groups; 1 where there are none."""
    name = f"{FOLDERS['hardware']}/{values.get('hardware')}.yaml"
    per_node = read_yaml(root / name, name).values.get("nproc_per_node")
    sizes = [values.get(f"{kind}_parallel_size", 1) for kind in _PARALLEL]
    expert_tensor = values.get("expert_tensor_parallel_size") or sizes[0]
    if any(type(size) is not int or size < 1 for size in (expert_tensor, *sizes)):
        return 1
    if not isinstance(per_node, int):
        return 1
    tensor, pipeline, context, expert = sizes
    dense, sparse = tensor * pipeline * context, expert_tensor * expert * pipeline
    ranks = math.lcm(dense, sparse if values.get("num_experts") else 1)
    return ranks // math.gcd(ranks, per_node)


def _reshaped(values: Mapping[str, Any], published: Mapping[str, Any]) -> bool:
    """Whether values change the number of parameters that a model was published with."""
    return bool(published) and any(
        values[key] != published.get(key, Settings.model_fields[key].default)
        for key in values
        if home_of(key) == "model"
        and key != "make_vocab_size_divisible_by"
        and "shapes" in affects(Settings.model_fields[key]).identity
    )


def _warnings(made: Imported, root: Path | None) -> list[str]:
    """What was kept although it is not what the model was published with, or will not train."""
    found = []
    published = {} if root is None else _architecture(root, made.model)
    for key, value in made.values.items():
        if home_of(key) == "model" and key in published and published[key] != value:
            found.append(
                f"{key} = {show(value)} is kept; configs/models/{made.model}.yaml has "
                f"{show(published[key])}, as published"
            )
    if made.values.get("init_method_std") not in (None, 0.02):
        std = made.values["init_method_std"]
        found.append(f"init_method_std = {show(std)} is kept; this project's own is 0.02")
    if published.get("use_rope_scaling") and "use_rope_scaling" not in made.values:
        found.append(
            f"configs/models/{made.model}.yaml scales the rotary frequencies, as published; Primus "
            "does not: --config use_rope_scaling=false for its numbers"
        )
    if made.values.get("moe_router_force_load_balancing"):
        found.append(
            "moe_router_force_load_balancing = true is kept: tokens are routed at random, and the "
            "model learns nothing useful; --config moe_router_force_load_balancing=false to train"
        )
    iterations = made.values.get("train_iters")
    if isinstance(iterations, int) and iterations <= _BENCHMARK_ITERS:
        found.append(f"train_iters = {iterations} is a benchmark's length, not a training's")
    return found


def check_given(given: Mapping[str, Any]) -> None:
    """Refuse to be given what the file itself must say.

    Raises:
        ConfigError: `given` names the model or a recipe.
    """
    wrong = sorted({"model", "recipe", "experiment"} & set(given))
    if wrong:
        why, fix = f"{listed(wrong)} cannot be given", "edit the written file afterwards"
        raise ConfigError(mistake("--config", wrong[0], why, fix).problems)
