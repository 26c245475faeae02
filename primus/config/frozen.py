"""The frozen settings of one stage: all that the stage may read, and nothing else.

The file's name carries a hash of its content (`settings_digest`), so that a YAML file edited while
a job waits in a queue cannot leak into the job.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import Self

from primus.config.identity import OF_THE_RUN, StageKey, digest_of
from primus.config.merge import merge
from primus.config.schema.keys import STAGES, Stage
from primus.errors import ArtifactError
from primus.files import atomic_write, parse_json, read_json

KIND = "settings"
VERSION = 1
_NAME = re.compile(r"[a-z]+\.([0-9a-f]{12})\.json")
_FIELDS: dict[str, type] = {
    **dict.fromkeys(("stage", "experiment", "key"), str),
    **dict.fromkeys(("identity", "extent", "options", "upstream"), dict),
}


class Values:
    """A read-only group of keys; reading one that is not there is an error, not a default."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = dict(values)
        self._where = where

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            value = self._values[name]
        except KeyError:
            raise AttributeError(
                f"{self._where} does not declare the key {name!r}: "
                "declare the stage beside the key in primus/config/schema"
            ) from None
        return Values(value, f"{self._where}.{name}") if isinstance(value, dict) else value

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def as_dict(self) -> dict[str, Any]:
        """The plain values, nested groups as dictionaries."""
        return dict(self._values)


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` of an older run, completed by the defaults of keys that came later."""
    from primus.config.schema.settings import Settings

    fields = Settings.model_fields.items()
    known = {name: field.default for name, field in fields if not field.is_required()}
    return known | dict(values)


class StageSettings(Values):
    """What one stage may read of a resolved experiment.

    Attributes:
        stage: which stage.
        experiment: name of the experiment.
        key: identity hash of the stage; part of the path of its artefact.
        identity, extent: the tracked values; `options` the untracked ones.
    """

    def __init__(
        self,
        *,
        stage: Stage,
        experiment: str,
        key: str,
        identity: Mapping[str, Any],
        extent: Mapping[str, Any],
        options: Mapping[str, Any],
        upstream: Mapping[str, str],
    ) -> None:
        super().__init__(merge(merge(identity, extent), options), f"stage {stage}")
        self.stage, self.experiment, self.key = stage, experiment, key
        self.identity, self.extent = dict(identity), dict(extent)
        self.options, self.upstream = dict(options), dict(upstream)

    @classmethod
    def of_key(cls, made: StageKey, experiment: str) -> Self:
        """What the stage that `made` identifies may read."""
        return cls(
            stage=made.stage,
            experiment=experiment,
            key=made.key,
            identity=made.identity,
            extent=made.extent,
            options=made.options,
            upstream=made.upstream,
        )

    @classmethod
    def of(
        cls, stage: Stage, values: Mapping[str, Any], *, experiment: str = "test", key: str = "key"
    ) -> Self:
        """Settings made by hand, all of them identity (for tests and benchmarks)."""
        return cls(
            stage=stage,
            experiment=experiment,
            key=key,
            identity=values,
            extent={},
            options={},
            upstream={},
        )

    def save(self, path: Path | str) -> None:
        """Write the frozen file."""
        content = {
            "kind": KIND,
            "schema_version": VERSION,
            "stage": self.stage,
            "experiment": self.experiment,
            "key": self.key,
            "identity": self.identity,
            "extent": self.extent,
            "options": self.options,
            "upstream": self.upstream,
        }
        with atomic_write(path) as stream:
            json.dump(content, stream, indent=2, sort_keys=True)
            stream.write("\n")

    @classmethod
    def load(cls, path: Path | str, stage: Stage, options: Mapping[str, Any] | None = None) -> Self:
        """Read the frozen file of `stage`; `options` replace the untracked values in it.

        Raises:
            ArtifactError: the file is missing, not a settings file, or of another stage.
        """
        try:
            content = read_json(path)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path}: cannot read the settings: {error}") from error
        if not isinstance(content, dict) or content.pop("kind", None) != KIND:
            raise ArtifactError(f"{path}: is not a frozen settings file")
        version, found = content.pop("schema_version", None), content.get("stage")
        if version != VERSION or found != stage or found not in STAGES:
            raise ArtifactError(
                f"{path}: settings version {version!r} of stage {found!r}, "
                f"wanted version {VERSION} of stage {stage!r}"
            )
        if content.keys() != _FIELDS.keys() or any(
            not isinstance(content[name], kind) for name, kind in _FIELDS.items()
        ):
            raise ArtifactError(f"{path}: is not a frozen settings file: fields are amiss")
        _check_digest(Path(path), content)
        given = dict(options or {})
        content["options"] = merge(content["options"], given)
        if "env" in given:
            # Not a group of keys: a variable that is no longer there must not linger.
            content["options"]["env"] = given["env"]
        return cls(**content)


def _check_digest(path: Path, content: Mapping[str, Any]) -> None:
    """Hold what a change would make another artefact of against the hash in the file's name."""
    named = _NAME.fullmatch(path.name)
    of_key = {"identity": content["identity"], "upstream": content["upstream"]}
    try:
        key = content["key"] if content["stage"] in OF_THE_RUN else digest_of(of_key)
        digest = digest_of({"key": key, "extent": content["extent"]})
    except ValueError as error:
        raise ArtifactError(f"{path}: is not a frozen settings file: {error}") from error
    if named and (key, digest) != (content["key"], named[1]):
        raise ArtifactError(
            f"{path}: was changed after it was written: its settings have the hash {digest}. "
            "Fix: delete the file and run snakemake again"
        )


def _json_object(text: str) -> dict[str, Any]:
    content = parse_json(text)
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def add_settings_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--settings` and `--options`, which every stage takes."""
    parser.add_argument(
        "--settings", type=Path, required=True, help="frozen settings of this stage (JSON)"
    )
    parser.add_argument(
        "--options",
        type=_json_object,
        default={},
        metavar="JSON",
        help="untracked settings that replace those in the file, e.g. '{\"log_interval\": 5}'",
    )


def load_settings(args: argparse.Namespace, stage: Stage) -> StageSettings:
    """The settings that the common arguments name."""
    return StageSettings.load(args.settings, stage, args.options)
