"""Which runs somebody means. Imports no numpy: Snakemake asks while it plans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from primus.artifacts.run import RunIdentity
from primus.config.newest import newest_first
from primus.config.paths import RUNS
from primus.config.problems import did_you_mean, listed, show
from primus.errors import UserError
from primus.hidden import printable

# More lines than can be told apart on one axis.
MOST = 8
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
            if not has_rows(path):
                raise UserError(
                    f"RUN = {show(name)}: has logged no iteration yet. "
                    "Fix: train it further (see python -m primus.status), or name another"
                )
            return path
    above = dict.fromkeys((Path(name), root / name))
    of_experiment = [path.parent for place in above for path in place.glob("*/run.json")]
    if trained := newest_first(filter(has_rows, of_experiment)):
        return trained[0]
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


def has_rows(directory: Path) -> bool:
    """Whether a run has logged an iteration."""
    try:
        return (directory / "metrics.jsonl").stat().st_size > 0
    except OSError:
        return False


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
