"""The faults of the campaign: what each of them does to a training, and what it may cost.

A fault strikes while ranks train. What needs hands (a disk to be cleared, a checkpoint to be
damaged while nobody writes) is an errand, run when the command has ended and before it is typed
again.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from campaign_run import GaveUp, Training, User

from primus.trainer.checkpoint_space import free_bytes

DISK_MIB = 192
_SOON = 300.0
# Iterations that ranks may get through while Snakemake starts a few times.
_UNSEEN = 300


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of fault.

    Attributes:
        bound: how many save intervals it may cost at most; 0: nothing at all.
        strike: does it, and says to what.
        checkpoints: good ones that there must be before.
        needs: what this machine must offer; "" where nothing.
    """

    name: str
    bound: int
    strike: Callable[[Blow], str]
    checkpoints: int = 1
    needs: str = ""


@dataclass(kw_only=True)
class Blow:
    """One fault that is about to fall: on what, for whom, and on which disk.

    Attributes:
        keep_back: has the training slow down where fewer iterations than that are left.
    """

    training: Training
    user: User
    rng: random.Random
    disk: Path | None
    keep_back: Callable[[int], None]

    def rank(self) -> tuple[int, psutil.Process]:
        """One of the ranks, by chance."""
        ranks = self.training.processes("primus.train_rank")
        return self.rng.choice(list(enumerate(ranks)))

    def one(self, module: str) -> psutil.Process:
        """The process that runs a module."""
        found = self.training.processes(module)
        if not found:
            raise GaveUp(f"no process runs {module}")
        return found[0]


def _to_rank(number: signal.Signals) -> Callable[[Blow], str]:
    def strike(blow: Blow) -> str:
        index, rank = blow.rank()
        rank.send_signal(number)
        return f"rank {index}"

    return strike


def _to(module: str, number: signal.Signals) -> Callable[[Blow], str]:
    def strike(blow: Blow) -> str:
        blow.one(module).send_signal(number)
        return module

    return strike


def _during_a_save(blow: Blow) -> str:
    end = time.monotonic() + _SOON
    while not blow.training.saving():
        if time.monotonic() > end:
            raise GaveUp("no checkpoint is being written")
        time.sleep(0.001)
    index, rank = blow.rank()
    rank.send_signal(signal.SIGKILL)
    return f"rank {index}"


def _segmentation_fault(blow: Blow) -> str:
    index, _ = blow.rank()
    blow.training.crash(index)
    return f"rank {index} reads address 0"


def _power_cut(blow: Blow) -> None:
    """Kill the ranks, so that nobody writes when the errand is run."""
    for rank in blow.training.processes("primus.train_rank"):
        rank.send_signal(signal.SIGKILL)


def _full_disk(blow: Blow) -> str:
    assert blow.disk is not None
    filler = blow.disk / "filler"
    size = sum(path.stat().st_size for path in blow.training.good()[0].rglob("*"))
    left = blow.rng.choice([0, size // 2, size + (1 << 20)])
    with filler.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, max(free_bytes(blow.disk) - left, 1))
    blow.user.errand = filler.unlink
    return f"{left >> 10} KiB left"


def _damage(how: Callable[[Path, random.Random], str]) -> Callable[[Blow], str]:
    def strike(blow: Blow) -> str:
        newest = blow.training.good()[0]

        def errand() -> None:
            # One more may have been published before the ranks were gone.
            checkpoint = blow.training.good()[0]
            blow.training.damaged.add(checkpoint.name)
            how(checkpoint, blow.rng)

        _power_cut(blow)
        blow.user.errand = errand
        return newest.name

    return strike


def _shard(checkpoint: Path, rng: random.Random) -> Path:
    return rng.choice([path for path in sorted(checkpoint.iterdir()) if path.stat().st_size > 1])


def flip_bit(checkpoint: Path, rng: random.Random) -> str:
    """Change one bit of a file of a checkpoint; its name."""
    path = _shard(checkpoint, rng)
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return path.name


def cut_short(checkpoint: Path, rng: random.Random) -> str:
    """Cut a file of a checkpoint anywhere; its name."""
    path = _shard(checkpoint, rng)
    os.truncate(path, rng.randrange(path.stat().st_size))
    return path.name


def remove_manifest(checkpoint: Path, _: random.Random) -> str:
    """Take a checkpoint's manifest away; its name."""
    path = checkpoint / "manifest.json"
    path.unlink()
    return path.name


def _tear(how: Callable[[Path, random.Random], None]) -> Callable[[Blow], str]:
    def strike(blow: Blow) -> str:
        directory = blow.training.directory
        assert directory is not None
        _power_cut(blow)
        blow.user.errand = lambda: how(directory, blow.rng)
        return "after all ranks were killed"

    return strike


def torn_metrics(directory: Path, rng: random.Random) -> None:
    """Cut the last row of metrics.jsonl, or add half of one.

    A row is on disk before the checkpoint of its iteration is published, so the row of the newest
    checkpoint is never torn.
    """
    path = directory / "metrics.jsonl"
    last = path.read_bytes().splitlines(keepends=True)[-1]
    newest = max(directory.glob("checkpoints/iter_*")).name.removeprefix("iter_")
    if f'"iteration":{int(newest)},'.encode() in last or rng.random() < 0.5:
        with path.open("ab") as stream:
            stream.write(last[: rng.randrange(1, len(last) - 1)])
    else:
        os.truncate(path, path.stat().st_size - rng.randrange(1, len(last)))


def torn_attempt(directory: Path, rng: random.Random) -> None:
    """Cut the record of the newest attempt, and what its agent wrote of its end."""
    newest = max(directory.glob("attempts/*"))
    for path in (newest / "attempt.json", *newest.glob("logs/*/failure.json")):
        if path.exists():
            os.truncate(path, rng.randrange(path.stat().st_size))


def torn_lease(directory: Path, rng: random.Random) -> None:
    """Cut the file that names the run's writer."""
    path = max(directory.glob("writer.*.json"))
    os.truncate(path, rng.randrange(path.stat().st_size))


def _killed_snakemake(blow: Blow) -> str:
    """The ranks live on; the next start must not add others, and the survivors end when asked."""
    # They must not come to their end before a second start is refused.
    blow.keep_back(_UNSEEN)
    blow.user.process.send_signal(signal.SIGKILL)
    blow.user.process.wait()
    refusals, stage = blow.user.refusals, blow.one("primus.train")
    end = time.monotonic() + _SOON
    while blow.user.refusals == refusals:
        if time.monotonic() > end or blow.user.look():
            raise GaveUp(f"a second start beside living ranks is not refused:\n{blow.user.said()}")
        time.sleep(0.05)
    stage.send_signal(signal.SIGTERM)
    return "its ranks lived on, a second start was refused"


KINDS = [
    Kind(name="SIGKILL of a rank", bound=1, strike=_to_rank(signal.SIGKILL)),
    Kind(name="SIGKILL during a save", bound=1, strike=_during_a_save),
    Kind(name="SIGSTOP of a rank", bound=1, strike=_to_rank(signal.SIGSTOP)),
    Kind(name="segmentation fault", bound=1, strike=_segmentation_fault),
    Kind(name="SIGTERM to the stage", bound=0, strike=_to("primus.train", signal.SIGTERM)),
    Kind(name="SIGUSR1 to the stage", bound=0, strike=_to("primus.train", signal.SIGUSR1)),
    Kind(name="SIGKILL of the stage", bound=0, strike=_to("primus.train", signal.SIGKILL)),
    Kind(name="SIGKILL of the agent", bound=1, strike=_to("primus.agent", signal.SIGKILL)),
    Kind(name="full disk", bound=1, strike=_full_disk, needs="mount"),
    Kind(name="flipped bit", bound=2, strike=_damage(flip_bit), checkpoints=2),
    Kind(name="checkpoint cut short", bound=2, strike=_damage(cut_short), checkpoints=2),
    Kind(name="manifest removed", bound=2, strike=_damage(remove_manifest), checkpoints=2),
    Kind(name="torn metrics", bound=1, strike=_tear(torn_metrics)),
    Kind(name="torn attempt record", bound=1, strike=_tear(torn_attempt)),
    Kind(name="torn lease", bound=1, strike=_tear(torn_lease)),
    Kind(name="killed Snakemake", bound=0, strike=_killed_snakemake),
]


def planned(count: int, rng: random.Random, *, names: list[str], mount: bool) -> list[Kind]:
    """Faults in the order in which they fall: every kind once before one comes again."""
    possible = [kind for kind in KINDS if (mount or kind.needs != "mount")]
    if names:
        possible = [kind for kind in possible if kind.name in names]
    plan: list[Kind] = []
    while len(plan) < count:
        plan += rng.sample(possible, len(possible))
    return plan[:count]


def mounted(path: Path) -> Path | None:
    """A small file system of its own at `path`; None where this user may not mount one."""
    path.mkdir(parents=True)
    size = f"size={DISK_MIB}m,mode=755"
    command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(path)]
    if shutil.which("mount") is None:
        return None
    done = subprocess.run(command, capture_output=True, check=False)
    return path if done.returncode == 0 else None


def unmount(path: Path) -> None:
    """Give it back; what is on it is gone."""
    subprocess.run(["umount", str(path)], check=True)
