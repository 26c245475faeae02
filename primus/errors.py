"""The exception tree: what can go wrong, and with which status the process then ends.

A `UserError` is something that the person at the keyboard can mend: it is shown as one line per
problem, without a traceback. Everything else is a fault of the machine or of this program.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NoReturn


class PrimusError(Exception):
    """Base of every error that this project raises on purpose; `exit_code` is the exit status."""

    exit_code: ClassVar[int] = 1


class UserError(PrimusError):
    """A mistake of the user; the message names the value, where it stands, and the fix."""

    exit_code: ClassVar[int] = 2


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
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class ConfigError(UserError):
    """One or more mistakes in the configuration, all of them at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(p) for p in self.problems))


class DataError(UserError):
    """Input text, token files or a tokenizer that are missing, damaged or do not fit together."""


class RunConflictError(UserError):
    """Something on disk belongs to another run, or another process owns the run."""


class StackMismatchError(UserError):
    """A tuned result was measured on another device or library build than the one in use."""


class UnavailableError(UserError):
    """The machine lacks what was asked for (a GPU, a library, a program)."""


class ArtifactError(PrimusError):
    """A file between stages is missing, torn, of another version, or its hash does not match."""


class CheckpointError(PrimusError):
    """A checkpoint cannot be written or none can be read."""


class TrainingError(PrimusError):
    """Training ended without its artefact: a rank died, or the numbers went wrong."""


class PreemptedError(TrainingError):
    """Training was asked to stop, by a signal or a time limit, and has saved its state.

    Attributes:
        advanced: it trained at least one iteration.
    """

    # EX_TEMPFAIL of sysexits.h: try again later.
    exit_code: ClassVar[int] = 75

    def __init__(self, message: str, *, advanced: bool) -> None:
        super().__init__(message)
        self.advanced = advanced


def fail(error: PrimusError) -> NoReturn:
    """Print `error` on stderr, one line per problem, and end the process with its status."""
    for line in str(error).splitlines():
        print(f"error: {line}", file=sys.stderr, flush=True)
    raise SystemExit(error.exit_code)


def run_main(main: Callable[[], None]) -> None:
    """Call `main` and turn a `PrimusError` into its one-line message and exit status.

    Any other exception keeps its traceback: it is a defect, and a defect must be visible.
    """
    try:
        main()
    except PrimusError as error:
        fail(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        raise SystemExit(130) from None
    except BrokenPipeError:
        # The reader, `head` say, has seen enough. Python flushes stdout once more on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
