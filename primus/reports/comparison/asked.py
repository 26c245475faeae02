"""The comparison that a call of Snakemake asks for.

Every start of Snakemake imports this, and few compare anything: nothing here reads a run before it
is asked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primus.config.layers import is_name
from primus.config.paths import RUNS
from primus.config.problems import show
from primus.errors import UserError
from primus.files import canonical_json, sha256_file, sha256_text

if TYPE_CHECKING:
    from primus.reports.comparison.find import Found

KEY = "runs"
_ASKED = re.compile(r"\b(compare|comparison)\b")


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
            from primus.reports.comparison.find import find_runs

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

    def growing(self, name: str) -> list[Path]:
        """Of each run the files that show whether it went on."""
        files = ("metrics.jsonl", "train.json")
        return [run.directory / file for run in self.of(name) for file in files]

    def state(self, name: str) -> list[str]:
        """Of each run how far it is, so that a comparison is made again when one went on."""
        return [_state(run.directory) for run in self.of(name)]


def _state(directory: Path) -> str:
    rows = (directory / "metrics.jsonl").stat().st_size
    train = directory / "train.json"
    digest = sha256_file(train)[:12] if train.is_file() else "not finished"
    return f"{directory}: {rows} bytes of metrics, {digest}"
