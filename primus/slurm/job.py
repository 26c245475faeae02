"""What Snakemake wants to run, as its job script says it, and sbatch's options for it."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import Self

from primus.errors import UserError
from primus.files import canonical_json, parse_json, sha256_text

_PROPERTIES = re.compile(r"^# properties = (\{.*\})$", re.MULTILINE)
# What the Snakemake inside the job is to run: rules with their wildcards.
_MEMBERS = re.compile(r" --target-jobs ((?:'[^'\n]*' ?)+)")
_NAME = re.compile(r"[^\w.-]+")

# What each resource is called by sbatch. The names are those of Snakemake's own SLURM plugin:
# --default-resources and --set-resources take what people are used to.
OPTIONS = {
    "slurm_account": "account",
    "slurm_partition": "partition",
    "qos": "qos",
    "constraint": "constraint",
    "reservation": "reservation",
    "exclude": "exclude",
    "nodes": "nodes",
    "gres": "gres",
    "mem_mb": "mem",
    "runtime": "time",
}

PREFIX = "primus:"
# The inputs of a group are not compared: one that is started again may have fewer members left.
ANY_INPUTS = "-"


def key_of(rule: str, output: Iterable[Any]) -> str:
    """Hash of the working directory and of what a job makes; equal for the same work."""
    return _digest([os.getcwd(), rule, sorted(map(str, output))])


def _digest(value: Any) -> str:
    return sha256_text(canonical_json(value))[:16]


def refuse_what_the_shell_would_read(script: Path, text: str) -> None:
    """Look for values and names of files that Snakemake has not quoted for a shell.

    It quotes those of --config and of waited-for files as Python does: a backslash, which in a
    shell's single quotes ends no quote and changes the value, and double quotes, in which a shell
    expands.

    Raises:
        UserError: there is one.
    """
    quote = ""
    for line in text.splitlines():
        for character in "" if line.startswith("#") else line:
            if character == "\\" or (quote != "'" and character in "$`"):
                break
            if character in "'\"" and quote in ("", character):
                quote = "" if quote else character
        else:
            continue
        raise UserError(
            f"{script}: a value of --config or the name of a text file holds a backslash, a line "
            "end, or a quotation mark beside $ or `, which Snakemake does not quote for a shell. "
            "Fix: write the value into the experiment's file, or rename the text file"
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job of Snakemake.

    Attributes:
        name: rule and owner, for people: `train.llama3_8B`.
        key: hash of the working directory and of what the job makes; equal for the same work.
        inputs: hash of what it reads, frozen settings among it: how far to train, say; and of
            keys that stand on its command line alone, those of a comparison of kernels.
        threads: cores per node.
        resources: by Snakemake's names.
        members: what it runs, as Snakemake writes it (`train:experiment=mine,key=…`); several of a
            group, of which a call after it may want only some.
    """

    name: str
    key: str
    inputs: str
    threads: int
    resources: Mapping[str, Any]
    members: frozenset[str] = frozenset()

    @classmethod
    def read(cls, script: Path) -> Self:
        """The job of a script that Snakemake wrote.

        Raises:
            UserError: the script is missing, has no line of properties that can be read, or holds
                what its shell would take for a command.
        """
        try:
            text = script.read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"{script}: cannot be read: {error.strerror}. Fix: name a script of Snakemake's"
            ) from error
        except ValueError:
            text = ""
        refuse_what_the_shell_would_read(script, text)
        try:
            found = _PROPERTIES.search(text)
            return cls._of(parse_json(found[1]) if found else None, _members(text))
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{script}: has no line of properties. Fix: let Snakemake write it "
                "(snakemake --profile slurm …)"
            ) from error

    @classmethod
    def _of(cls, content: Any, members: frozenset[str]) -> Self:
        rule = str(content.get("rule") or content.get("groupid") or "job")
        wildcards = content.get("wildcards") or {}
        owner = wildcards.get("experiment") or wildcards.get("owner") or wildcards.get("dataset")
        # Snakemake numbers a group by its last member, which stays when others have finished.
        group = content.get("type") == "group"
        resources = dict(content.get("resources", {}))
        if group and "nodes" in resources:
            # It adds up those of members that run side by side: in one process, on one node.
            resources["nodes"] = 1
        return cls(
            name=_NAME.sub("_", f"{rule}.{owner}" if owner else rule),
            key=key_of(rule, [content.get("jobid")] if group else content.get("output") or []),
            inputs=ANY_INPUTS if group else _digest(_read_by(content)),
            threads=int(content.get("threads", 1)),
            resources=resources,
            members=members,
        )

    @property
    def comment(self) -> str:
        """By which a job that is queued or runs is found again."""
        return f"{PREFIX}{self.key}:{self.inputs}"

    def options(self, log: Path) -> list[str]:
        """Options for sbatch.

        Args:
            log: where the job's output goes; `%j` in it becomes the job's number.
        """
        cores = self.resources.get("cpus_per_task", self.threads)
        options = [
            f"--job-name={self.name}",
            f"--comment={self.comment}",
            f"--output={log}",
            # A job that SLURM starts again goes on in the same file.
            "--open-mode=append",
            "--ntasks-per-node=1",
            f"--cpus-per-task={cores}",
        ]
        # Of an option that comes twice sbatch takes the last: a resource named on the command
        # line beats the configuration's.
        options += _words(self.resources.get("sbatch"))
        options += [
            f"--{option}={self.resources[name]}"
            for name, option in OPTIONS.items()
            if self.resources.get(name) not in (None, "")
        ]
        return options + _words(self.resources.get("slurm_extra"))


def made_by(script: Path) -> tuple[frozenset[str], bool]:
    """What the job of a script that Snakemake wrote makes, and whether it is a group of jobs.

    Of a group it is only what no member of it reads. Nothing where the script cannot be read.
    """
    try:
        found = _PROPERTIES.search(script.read_text(encoding="utf-8"))
        content = parse_json(found[1]) if found else {}
        return frozenset(map(str, content.get("output") or ())), content.get("type") == "group"
    except (OSError, ValueError, TypeError, AttributeError):
        return frozenset(), False


def _read_by(content: Any) -> list[str]:
    """The files that a job reads, and the values of keys; flags with files are lists."""
    given = content.get("params") or {}
    keys = {n: v for n, v in given.items() if n != "options" and isinstance(v, str)}
    files = sorted(content.get("input") or [])
    return [*files, *(f"{name}={value}" for name, value in sorted(keys.items()))]


def members_of(script: Path) -> frozenset[str]:
    """`Job.members` of a script that Snakemake wrote; nothing where it cannot be read."""
    try:
        return _members(script.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return frozenset()


def _members(text: str) -> frozenset[str]:
    found = _MEMBERS.search(text)
    return frozenset(shlex.split(found[1])) if found else frozenset()


def _words(resource: Any) -> list[str]:
    try:
        return shlex.split(str(resource or ""))
    except ValueError as error:
        raise UserError(
            f"{resource!r}: {error}. Fix: close the quotation mark in slurm_extra"
        ) from error
