"""Where ranks write what they say: `rank000/stdout.log` and `rank000/stderr.log` of a node."""

from __future__ import annotations

from pathlib import Path

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs

from primus.ranks.places import rank_directory


def log_of(directory: Path, rank: int, stream: str) -> Path:
    """The file of one rank's `stdout` or `stderr`."""
    return directory / rank_directory(rank) / f"{stream}.log"


class RankLogs(LogsSpecs):
    """Torch's names for these files.

    Args:
        directory: of this node. first: number of its first rank of all.
        shown: what the first of them says is printed, too.
    """

    def __init__(self, directory: Path, first: int, *, shown: bool) -> None:
        super().__init__(log_dir=str(directory))
        self._directory, self._first, self._shown = directory, first, shown

    @property
    def root_log_dir(self) -> str:
        """The node's directory."""
        return str(self._directory)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Make the directories of the local ranks `envs` and name their files."""

        def files(stream: str) -> dict[int, str]:
            names = {n: log_of(self._directory, self._first + n, stream) for n in envs}
            for path in names.values():
                path.parent.mkdir(parents=True, exist_ok=True)
            return {number: str(path) for number, path in names.items()}

        outs, errors = files("stdout"), files("stderr")
        return LogsDest(
            stdouts=outs,
            stderrs=errors,
            tee_stdouts={0: outs[0]} if self._shown else {},
            tee_stderrs={0: errors[0]} if self._shown else {},
            error_files=files("error"),
        )
