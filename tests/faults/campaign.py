"""Hurt a training by chance, over and over, and see whether it ends as if nothing had happened.

    python tests/faults/campaign.py --minutes 10 --ranks 2 --seed 1 --every 30
    python tests/faults/campaign.py --faults 4 --seed 1 --json figures.json

A small model is trained by `snakemake train_…`. Every so often a fault falls, and the same command
is typed again. What the seed has planned is printed first, then the faults as they happened, then
what was asked of the run and whether it holds. Status 0 only if all of it does.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from campaign_faults import KINDS, Blow, Kind, mounted, planned, unmount
from campaign_run import SLOWEST, GaveUp, Training, User
from campaign_verdict import Fallen, Question, goodput, judge

from primus.files import atomic_write

# Iterations of the attempt before a fault falls on it, so that each brings something.
_SETTLED = 2
_POLL_SECONDS = 0.05
# For a fault to be noticed, and for the training to go on, on a slow machine.
_PATIENCE = 900.0
_COLUMNS = "{:>7} {:<23} {:>9} {:>7} {:>5} {:>6} {:>8}  {}"


@dataclass(kw_only=True)
class Figures:
    """What a campaign came to; `--json` writes it."""

    seed: int
    ranks: int
    iterations: int
    save_interval: int
    plan: list[str]
    left_out: list[str]
    faults: list[Fallen]
    finished: bool = False
    largest_loss: int = 0
    goodput: float = 0.0
    seconds: float = 0.0
    seconds_under_faults: float = 0.0
    starts: int = 0
    refusals: int = 0
    questions: list[Question]


class Campaign:
    """Faults on one training, one after the other."""

    def __init__(self, args: argparse.Namespace, path: Path) -> None:
        self._args = args
        self._rng = random.Random(args.seed)
        self._training = Training(
            path / "work", ranks=args.ranks, iterations=_iterations(args), interval=args.interval
        )
        self._disk = mounted(self._training.path / "output" / "runs")
        may_mount = self._disk is not None
        self._plan = planned(_count(args), self._rng, names=args.kind, mount=may_mount)
        self.figures = Figures(
            seed=args.seed,
            ranks=args.ranks,
            iterations=self._training.iterations,
            save_interval=args.interval,
            plan=[kind.name for kind in self._plan],
            left_out=[] if may_mount else [kind.name for kind in KINDS if kind.needs],
            faults=[],
            questions=[],
        )

    def run(self) -> bool:
        """Everything; whether all holds."""
        training, figures = self._training, self.figures
        _say_plan(figures)
        training.prepare()
        undisturbed = training.undisturbed()
        training.pace(self._args.pace)
        began = time.time()
        user = User(training)
        try:
            ended_early = self._hurt(user, began)
            figures.seconds_under_faults = time.time() - began
            training.pace(0)
            self._finish(user)
            figures.seconds = time.time() - began
            figures.starts, figures.refusals = user.starts, user.refusals
            figures.goodput = goodput(training, began, figures.seconds_under_faults)
            figures.largest_loss = max((one.lost for one in figures.faults), default=0)
            figures.finished = training.finished()
            figures.questions = judge(training, undisturbed, figures.faults, ended_early)
        except GaveUp as error:
            figures.questions.append(Question("finished", False, str(error)))
        finally:
            user.end()
        _say_verdict(figures)
        return all(question.holds for question in figures.questions)

    def close(self) -> None:
        """Give the small file system back."""
        if self._disk is not None:
            unmount(self._disk)

    def _hurt(self, user: User, began: float) -> bool:
        """Have every fault of the plan fall; whether the training ended before the last."""
        print(
            _COLUMNS.format(
                "second", "fault", "iteration", "resumed", "lost", "bound", "back in", ""
            )
        )
        for number, kind in enumerate(self._plan, start=1):
            if self._args.minutes and time.time() > began + 60 * self._args.minutes:
                # A machine that is slow to go on has had fewer of them.
                break
            due = began + number * self._args.every if self._args.minutes else 0.0
            self._left = len(self._plan) - number
            if not self._settle(user, kind, due):
                return True
            fallen = self._strike(user, kind, began)
            self.figures.faults.append(fallen)
            print(fallen.line(_COLUMNS), flush=True)
        return False

    def _settle(self, user: User, kind: Kind, due: float) -> bool:
        """Wait until a fault may fall; False where the training is over."""
        first: tuple[int, int] | None = None
        training = self._training
        while True:
            if user.look():
                return False
            attempt, iteration = training.at()
            if first is None or first[0] != attempt:
                first = attempt, iteration
            self._keep_back()
            grown = attempt > 0 and iteration - first[1] >= _SETTLED
            if grown and time.time() >= due and len(training.good()) >= kind.checkpoints:
                return True
            time.sleep(_POLL_SECONDS)

    def _keep_back(self, reserve: int | None = None) -> None:
        """Slow down where few iterations are left for the faults that are still to come."""
        training = self._training
        if reserve is None:
            reserve = min(4 * self._args.interval * (self._left + 1), training.iterations // 4)
        near = training.iterations - training.at()[1] < reserve
        training.pace(SLOWEST if near else self._args.pace)

    def _strike(self, user: User, kind: Kind, began: float) -> Fallen:
        """Have a fault fall, and wait until the training has gone on."""
        training = self._training
        struck, _ = training.at()
        blow = Blow(
            training=training,
            user=user,
            rng=self._rng,
            disk=self._disk,
            keep_back=self._keep_back,
        )
        at = time.time()
        what = kind.strike(blow)
        reached = 0
        while True:
            attempt, iteration = training.at()
            if attempt == struck:
                reached = max(reached, iteration)
            elif attempt > struck:
                break
            if user.look():
                raise GaveUp(f"{kind.name}: the training finished as if there had been no fault")
            self._keep_back()
            if time.time() - at > _PATIENCE:
                raise GaveUp(f"{kind.name}: does not go on\n{user.said()[-3000:]}")
            time.sleep(_POLL_SECONDS)
        resumed = training.attempt(attempt).first_iteration
        return Fallen(
            second=at - began,
            fault=kind.name,
            what=what,
            iteration=reached,
            resumed_from=resumed,
            lost=reached - resumed,
            bound=kind.bound * self._args.interval,
            back_in=time.time() - at,
        )

    def _finish(self, user: User) -> None:
        while not user.look():
            time.sleep(_POLL_SECONDS)


def _count(args: argparse.Namespace) -> int:
    return args.faults or max(1, int(args.minutes * 60 // args.every) - 1)


def _iterations(args: argparse.Namespace) -> int:
    """Enough that the training outlives the faults; slower near its end, it always does."""
    if args.faults:
        return args.interval * (6 * args.faults + 10)
    return max(int(0.8 * args.minutes * 60 / args.pace), 12 * args.interval)


def _say_plan(figures: Figures) -> None:
    print(
        f"plan of seed {figures.seed}, {figures.ranks} ranks, {figures.iterations} iterations, "
        f"a checkpoint every {figures.save_interval}:"
    )
    for number, name in enumerate(figures.plan, start=1):
        print(f"{number:>4} {name}")
    for name in figures.left_out:
        print(f"left out, no file system can be mounted here (not root): {name}")
    sys.stdout.flush()


def _say_verdict(figures: Figures) -> None:
    print(
        f"\n{len(figures.faults)} of {len(figures.plan)} planned faults fell, the others' time "
        "never came"
        if len(figures.faults) < len(figures.plan)
        else "\nevery planned fault fell"
    )
    print(
        f"{figures.seconds:.0f} s, {figures.starts} starts, of which {figures.refusals} "
        "were refused because an owner lived"
    )
    print(
        f"largest loss: {figures.largest_loss} iterations (a checkpoint every "
        f"{figures.save_interval})"
    )
    print(
        f"goodput: {figures.goodput:.3f} (seconds of iterations that are part of the result, over "
        f"the {figures.seconds_under_faults:.0f} s from the first start until the training had "
        "gone on after the last fault)"
    )
    for question in figures.questions:
        print(f"{'yes' if question.holds else 'NO ':<4} {question.name}: {question.detail}")
    print("all holds" if all(q.holds for q in figures.questions) else "something does not hold")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a campaign; 0 only if everything that is asked of the run holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=10.0, help="with a fault now and then")
    length.add_argument("--faults", type=int, default=0, help="so many, each as soon as it may")
    parser.add_argument("--every", type=float, default=30.0, help="seconds from fault to fault")
    parser.add_argument("--ranks", type=int, default=2, choices=(2, 4))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--interval", type=int, default=20, help="iterations from save to save")
    parser.add_argument("--pace", type=float, default=0.4, help="seconds added to an iteration")
    names = [kind.name for kind in KINDS]
    parser.add_argument("--kind", action="append", default=[], choices=names, help="only these")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--keep", type=Path, help="a new directory to work in, and to leave there")
    args = parser.parse_args(argv)
    # As Ctrl-C: nothing of the campaign is left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    args.minutes = 0.0 if args.faults else args.minutes
    if args.keep is not None:
        args.keep.mkdir(parents=True)
    path = args.keep or Path(tempfile.mkdtemp(prefix="primus-campaign-"))
    campaign = None
    try:
        campaign = Campaign(args, path.resolve())
        holds = campaign.run()
    finally:
        if campaign is not None and args.keep is None:
            campaign.close()
        if args.keep is None:
            shutil.rmtree(path)
    if args.json is not None:
        with atomic_write(args.json) as stream:
            json.dump(asdict(campaign.figures), stream, indent=2)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
