"""Which runs somebody means. Imports no numpy: Snakemake asks before it plans anything."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from primus.artifacts.run import RunIdentity, read_attempts
from primus.config.layers import is_name
from primus.config.problems import did_you_mean, listed, show
from primus.errors import UserError
from primus.files import canonical_json, sha256_file, sha256_text
from primus.hidden import printable

RUNS = Path("output") / "runs"
# More lines than can be told apart on one axis.
MOST = 8
KEY = "runs"
_ASKED = re.compile(r"\b(compare|comparison)\b")
_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Found:
    """A run that somebody named.

    Attributes:
        label: the experiment; with the key, or as a path, where that is not enough.
    """

    label: str
    directory: Path
    experiment: str
    key: str


def find_runs(names: Sequence[str], root: Path = RUNS) -> list[Found]:
    """The runs that `names` mean, in their order.

    Args:
        names: of each a directory, its train.json, an experiment (its newest run), or
            experiment/key.

    Raises:
        UserError: too few or too many, one that is not there, one named twice, or one that has
            logged nothing.
        ArtifactError: a run.json is damaged.
    """
    if len(names) < 2:
        named = f"only {show(names[0])} is named" if names else "none is named"
        raise UserError(f"RUN: {named}, and a comparison takes two or more. Fix: name another run")
    if len(names) > MOST:
        raise UserError(
            f"RUN: {len(names)} are named, and a page can show {MOST}. Fix: compare fewer at a time"
        )
    directories = [_directory(name, root) for name in names]
    for place, count in Counter(path.resolve() for path in directories).items():
        if count > 1:
            twice = [n for n, d in zip(names, directories, strict=True) if d.resolve() == place]
            raise UserError(
                f"RUN = {', '.join(map(show, twice))}: is {count} times the same run, {place}. "
                "Fix: name another, for example experiment/key"
            )
    identities = [RunIdentity.load(path / "run.json") for path in directories]
    return [
        Found(label=label, directory=path, experiment=identity.experiment, key=identity.key)
        for label, path, identity in zip(
            _labels(identities, directories), directories, identities, strict=True
        )
    ]


def _directory(name: str, root: Path) -> Path:
    for path in (Path(name), root / name):
        if path.name == "train.json" and path.is_file():
            path = path.parent
        if (path / "run.json").is_file():
            if not _has_rows(path):
                raise UserError(
                    f"RUN = {show(name)}: has logged no iteration yet. "
                    "Fix: train it further (see python -m primus.status), or name another"
                )
            return path
    above = dict.fromkeys((Path(name), root / name))
    of_experiment = sorted(path.parent for place in above for path in place.glob("*/run.json"))
    trained = [path for path in of_experiment if _has_rows(path)]
    if trained:
        return max(trained, key=lambda path: (_last_start(path), path.name))
    if of_experiment:
        raise UserError(
            f"RUN = {show(name)}: none of its {len(of_experiment)} runs has logged an iteration "
            "yet. Fix: train it further, or name another"
        )
    raise UserError(f"RUN = {show(name)}: there is no such run. Fix: {_advice(name, root)}")


def _advice(name: str, root: Path) -> str:
    """What may have been meant."""
    keys = [f"{path.parent.parent.name}/{path.parent.name}" for path in root.glob("*/*/run.json")]
    known = sorted({key.partition("/")[0] for key in keys})
    if not known:
        return f"train one first; there is none below {root}"
    if "/" in name and (near := did_you_mean(name, keys)):
        return near
    if near := did_you_mean(name, known):
        return near
    more = f" and {len(known) - _NAMED} more" if len(known) > _NAMED else ""
    return f"name a directory, a train.json, or an experiment: {listed(known[:_NAMED])}{more}"


def _has_rows(directory: Path) -> bool:
    try:
        return (directory / "metrics.jsonl").stat().st_size > 0
    except OSError:
        return False


def _last_start(directory: Path) -> float:
    """Seconds since the epoch at which the last attempt began."""
    return max((attempt.started for attempt in read_attempts(directory)), default=0.0)


def _labels(identities: Sequence[RunIdentity], directories: Sequence[Path]) -> Iterator[str]:
    experiments = Counter(identity.experiment for identity in identities)
    runs = Counter((identity.experiment, identity.key) for identity in identities)
    for identity, directory in zip(identities, directories, strict=True):
        if experiments[identity.experiment] == 1:
            yield printable(identity.experiment)
        elif runs[identity.experiment, identity.key] == 1:
            yield printable(f"{identity.experiment}/{identity.key}")
        else:
            # matplotlib leaves a label that begins with _ out of the legend.
            path = printable(str(directory))
            yield f"./{path}" if path.startswith("_") else path


def take(config: MutableMapping[str, Any], words: Sequence[str]) -> Any:
    """Take the names of the runs out of `config`; None where no comparison is asked for.

    Args:
        config: Snakemake's, changed in place: what stays is of the experiments.
        words: Snakemake's command line. Where it asks for no comparison, `runs` stays, and is a
            key that no experiment knows.
    """
    if not any(_ASKED.search(word) for word in words):
        return None
    return config.pop(KEY, ())


def names_in(value: Any) -> list[str]:
    """The names in `--config runs=a,b` or `runs=[a, b]`.

    Raises:
        UserError: it is neither.
    """
    if isinstance(value, Mapping):
        raise UserError(f"--config: {KEY} = {show(value)}: is no list. Fix: write {KEY}=a,b")
    if isinstance(value, list | tuple):
        return [str(part) for part in value]
    return [part.strip() for part in str(value).split(",") if part.strip()]


class Asked:
    """The comparison that one call of Snakemake asks for; looked for once, when it is needed."""

    def __init__(self, value: Any, root: Path = RUNS) -> None:
        """`value`: as `take` has found it."""
        self._value, self._root = value, root
        self._found: list[Found] | None = None

    @property
    def found(self) -> list[Found]:
        """The runs; raises as `find_runs` and `names_in`."""
        if self._found is None:
            names = names_in(self._value or ())
            if not names:
                raise UserError(
                    f"--config: {KEY}: which runs are to be compared? "
                    f"Fix: snakemake compare --config {KEY}=a,b"
                )
            self._found = find_runs(names, self._root)
        return self._found

    @property
    def name(self) -> str:
        """Part of a path: the experiments, and a hash of the runs in their order."""
        experiments = dict.fromkeys(run.experiment for run in self.found)
        words = [name if is_name(name) else "run" for name in experiments]
        which = sha256_text(canonical_json([os.path.abspath(run.directory) for run in self.found]))
        return f"{'-vs-'.join(words)[:80]}.{which[:8]}"

    def of(self, name: str) -> list[Found]:
        """The runs of the comparison of that name.

        Raises:
            UserError: it is not the one that is asked for.
        """
        if name != self.name:
            raise UserError(
                f"output/compare/{name}.html: is not of the runs that {KEY} names. "
                f"Fix: snakemake compare --config {KEY}=a,b"
            )
        return self.found

    def directories(self, name: str) -> list[str]:
        """Paths of the runs, as arguments."""
        return [str(run.directory) for run in self.of(name)]

    def identities(self, name: str) -> list[str]:
        """Of each run the small file that no rule makes and nobody writes again."""
        return [str(run.directory / "run.json") for run in self.of(name)]

    def state(self, name: str) -> list[str]:
        """Of each run how far it is, so that a comparison is made again when one went on."""
        return [_state(run.directory) for run in self.of(name)]


def _state(directory: Path) -> str:
    rows = (directory / "metrics.jsonl").stat().st_size
    train = directory / "train.json"
    digest = sha256_file(train)[:12] if train.is_file() else "not finished"
    return f"{directory}: {rows} bytes of metrics, {digest}"
