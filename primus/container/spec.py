"""A container: what `container` of the settings means for one stage on this machine."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from typing_extensions import Self

from primus.config.frozen import StageSettings
from primus.config.mount import Mount
from primus.container.environment import INSIDE
from primus.container.mounts import mounts_of
from primus.files import canonical_json, sha256_text

Runtime = Literal["docker", "podman", "apptainer", "pyxis"]


@dataclass(frozen=True, kw_only=True)
class Container:
    """What does not depend on the node on which it starts; travels as JSON, without secrets.

    Attributes:
        name: the same in every turn of the same work, so that what was left behind is found.
        platform: "cuda", "rocm" or "cpu": which devices it needs.
        python: the interpreter in the image.
        directory: in which commands run.
        variables: names to pass, or where unset to unset, besides the usual ones.
        options: the user's own, for the runtime's command line.
    """

    runtime: Runtime
    image: str
    name: str
    platform: str
    python: str
    directory: str
    mounts: tuple[Mount, ...]
    variables: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    privileged: bool = False

    @classmethod
    def of(
        cls, settings: StageSettings, *, paths: Sequence[Path] = (), variables: Iterable[str] = ()
    ) -> Self | None:
        """The container of a stage; None where there is none, or inside of it.

        Args:
            paths: files that the stage reads or writes and that no setting names.
            variables: names of what is set for the ranks besides `env` of the settings.

        Raises:
            UnavailableError: a path cannot be mounted.
        """
        # Settings made by hand for one step of a stage may do without the group.
        if INSIDE in os.environ or "container" not in settings:
            return None
        keys = settings.container
        if keys.runtime == "none":
            return None
        work = [os.getuid(), os.getcwd(), settings.experiment, settings.stage, settings.key]
        mark = sha256_text(canonical_json(work))[:12]
        return cls(
            runtime=keys.runtime,
            image=keys.image,
            name=f"primus-{settings.stage}-{mark}",
            platform=settings.platform,
            python=keys.python,
            directory=os.getcwd(),
            mounts=tuple(mounts_of(settings.as_dict(), keys.mounts, paths)),
            variables=tuple(sorted({*settings.env.as_dict(), *variables})),
            options=tuple(keys.options),
            privileged=keys.privileged,
        )

    @property
    def is_step(self) -> bool:
        """A step of SLURM as a whole is inside: srun starts it there."""
        return self.runtime == "pyxis"

    def to_json(self) -> str:
        """For a command line."""
        return canonical_json(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        values["mounts"] = tuple(Mount(**mount) for mount in values["mounts"])
        values |= {name: tuple(values[name]) for name in ("variables", "options")}
        return cls(**values)


def python(container: Container | None, arguments: Sequence[str]) -> list[str]:
    """The argument list that runs Python on this node, in the container where there is one.

    With pyxis it is srun's step that is in the container: see `srun_options`.
    """
    if container is None:
        return [sys.executable, *arguments]
    if container.is_step:
        return inside(container, arguments)
    run = ("-m", "primus.container.run", "--container", container.to_json())
    return [sys.executable, *run, "--", *arguments]


def inside(
    container: Container, arguments: Sequence[str], *, unset: Iterable[str] = ()
) -> list[str]:
    """The argument list of Python in the image: the first process of ours in there.

    Args:
        unset: variables of the image that commands must not see.
    """
    leash = () if container.is_step else ("--leash",)
    remove = (item for name in unset for item in ("--unset", name))
    command = (container.python, *arguments)
    return [container.python, "-m", "primus.container.inside", *leash, *remove, "--", *command]
