"""The exception tree: what can go wrong, and with which status the process then ends.

A `UserError` is something that the person at the keyboard can mend: it is shown as one line per
problem, without a traceback. Everything else is a fault of the machine or of this program.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, NoReturn

from primus.hidden import hide, printable


class PrimusError(Exception):
    """Base of every error that this project raises on purpose.

    Attributes:
        exit_code: the exit status; from sysexits.h where that has a fitting one.
        meaning: what the status says, in words.
    """

    exit_code: ClassVar[int] = 1
    meaning: ClassVar[str] = "a fault of the machine or of this program"


class UserError(PrimusError):
    """A mistake of the user; the message names the value, where it stands, and the fix."""

    # argparse's, too.
    exit_code: ClassVar[int] = 2
    meaning: ClassVar[str] = "a mistake that can be mended; the message says how"


@dataclass(frozen=True, kw_only=True, order=True)
class Problem:
    """One mistake in one place: `file: key = value: why (fix)`."""

    file: str
    key: str
    value: str
    why: str
    fix: str

    def __str__(self) -> str:
        where = f"{self.file}: {self.key}" if self.key else self.file
        value = f" = {self.value}" if self.value else ""
        text = f"{where}{value}: {self.why}. Fix: {self.fix}"
        # Line ends of any alphabet, and what would steer the terminal, would make it no one line.
        return printable(text)


class ConfigError(UserError):
    """One or more mistakes in the configuration, all of them at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(p) for p in self.problems))


class DataError(UserError):
    """Input text, token files or a tokenizer that are missing, damaged or do not fit together."""

    exit_code: ClassVar[int] = os.EX_DATAERR
    meaning: ClassVar[str] = "bad data: a file that was to be read is missing, damaged or changed"


class RunConflictError(UserError):
    """Something on disk belongs to another run, or another process owns the run."""


class StackMismatchError(UserError):
    """A tuned result was measured on another device or library build than the one in use."""


class UnavailableError(UserError):
    """The machine lacks what was asked for (a GPU, a library, a program)."""


class ArtifactError(PrimusError):
    """A file between stages is missing, torn, of another version, or its hash does not match."""

    exit_code: ClassVar[int] = DataError.exit_code
    meaning: ClassVar[str] = DataError.meaning


class FileSystemError(PrimusError):
    """The file system refuses: it is full or read-only, the user has no right, a device fails."""

    exit_code: ClassVar[int] = os.EX_IOERR
    meaning: ClassVar[str] = "a file or checkpoint could not be written, or no good one be read"


class CheckpointError(PrimusError):
    """A checkpoint cannot be written or none can be read."""

    exit_code: ClassVar[int] = FileSystemError.exit_code
    meaning: ClassVar[str] = FileSystemError.meaning


class TrainingError(PrimusError):
    """Training ended without its artefact: a rank died, or the numbers went wrong."""


class OutOfMemoryError(TrainingError):
    """A rank needed more memory than there is; the message names the keys to change."""

    exit_code: ClassVar[int] = os.EX_OSERR
    meaning: ClassVar[str] = "out of memory: the same command fails again until a key is changed"


class NodeError(TrainingError):
    """Nodes do not pass the checks before a training; one line for each fault."""


class PreemptedError(TrainingError):
    """Training was asked to stop, by a signal or a time limit, and has saved its state.

    Attributes:
        advanced: it trained at least one iteration.
    """

    exit_code: ClassVar[int] = os.EX_TEMPFAIL
    meaning: ClassVar[str] = "asked to stop, and saved: the same command goes on from there"

    def __init__(self, message: str, *, advanced: bool) -> None:
        super().__init__(message)
        self.advanced = advanced


INTERRUPTED = 128 + signal.SIGINT

# What the machine answers, whatever the program; other errors of a file may be a defect here.
_REFUSALS = {
    errno.ENOSPC: "make room, or name another directory",
    errno.EDQUOT: "make room within the quota, or name another directory",
    errno.EROFS: "name a directory that can be written to",
    errno.EACCES: "give this user the right, or name another path",
    errno.EPERM: "give this user the right, or name another path",
    errno.EEXIST: "move away the file that lies there, or name another path",
    errno.ENOTDIR: "move away the file that lies where a directory should be",
    errno.EIO: "have the device or the file system looked at",
    errno.ESTALE: "have the network file system looked at",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


def meanings() -> dict[int, str]:
    """What each exit status of this project's commands says."""
    found = {os.EX_OK: "done: what was asked for is there, and is verified"}
    classes: list[type[PrimusError]] = [PrimusError]
    for kind in classes:
        found[kind.exit_code] = kind.meaning
        classes += kind.__subclasses__()
    return found | {INTERRUPTED: "interrupted by Ctrl-C"}


def fail(error: PrimusError) -> NoReturn:
    """Print `error` on stderr and end the process with its status.

    One line per problem; then the status in words, where the lines do not say it all.
    """
    lines = [f"error: {line}" for line in hide(str(error)).splitlines()]
    if error.exit_code != UserError.exit_code:
        lines.append(f"exit status {error.exit_code}: {error.meaning}")
    for line in lines:
        print(line, file=sys.stderr, flush=True)
    raise SystemExit(error.exit_code)


def _show_defect(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A traceback as Python shows it, without what its texts hold of secrets."""
    text = "".join(traceback.format_exception(kind, error, trace))
    print(hide(text), file=sys.stderr, end="", flush=True)


def run_main(main: Callable[[], None]) -> None:
    """Call `main` and turn a `PrimusError` into its one-line message and exit status.

    So is what the file system refuses. Any other exception keeps its traceback: it is a defect,
    and a defect must be visible.
    """
    sys.excepthook = _show_defect
    try:
        main()
    except PrimusError as error:
        fail(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        # The reader, `head` say, has seen enough. Python flushes stdout once more on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as error:
        fix = _REFUSALS.get(error.errno or 0)
        if fix is None:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        fail(FileSystemError(f"{where}{error.strerror}. Fix: {fix}"))
