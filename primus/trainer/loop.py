"""The training loop: iterate, log, validate, save, and stop when asked."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from megatron.core import parallel_state
from megatron.core.utils import get_model_config
from torch import Tensor, distributed

from primus import consumed
from primus.artifacts.run import MetricsRow, ValidationRow
from primus.config.estimate import checkpoint_bytes
from primus.config.frozen import StageSettings
from primus.errors import TrainingError
from primus.trainer import checkpoint_space
from primus.trainer.async_save import Saver
from primus.trainer.bad_batch import RouterBiases, skip_or_stop, what_is_wrong
from primus.trainer.checkpoint import TrainingState
from primus.trainer.consumed import Consumed
from primus.trainer.forward_backward import forward_backward, micro_batch_losses, summed
from primus.trainer.local_gradients import LocalGradients
from primus.trainer.metrics import Metrics
from primus.trainer.not_finite import origin
from primus.trainer.optimizer import take_step
from primus.trainer.prediction import take_prediction_losses
from primus.trainer.resources import Resources
from primus.trainer.retention import Retention
from primus.trainer.slow_ranks import SlowRanks
from primus.trainer.watch import Watch

logger = logging.getLogger(__name__)

Outcome = Literal["completed", "preempted"]
MicroBatches = Iterator[dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the loop needs besides the training state.

    Attributes:
        train_batches: (consumed_samples) → this rank's micro-batches from there on.
        valid_batches: () → this rank's micro-batches of the validation split, from its start.
        peak_tflops: measured peak of one device; None leaves the share of peak out.
        about: fields of every checkpoint's manifest that do not change during the attempt.
        metrics: on rank 0 only.
        stop_requested: polled after each iteration; True ends the attempt as "preempted".
        after_first_iteration: called once; it may refuse to go on by raising.
        may_write: called before anything of a checkpoint is; it raises where the run has been
            taken over by another process.
        report: called with what the loop goes on to do, and the last iteration that is finished;
            a rank whose reports stop is taken for hung.
        saved: called with the iteration of a save, and with the seconds of the longest one and
            those for which saves have held up this attempt.
    """

    settings: StageSettings
    directory: Path
    attempt: int
    train_batches: Callable[[int], MicroBatches]
    valid_batches: Callable[[], MicroBatches] | None
    flops_per_token: float
    peak_tflops: float | None
    about: dict[str, Any]
    metrics: Metrics | None
    stop_requested: Callable[[], bool]
    after_first_iteration: Callable[[], None]
    may_write: Callable[[], None] = lambda: None
    report: Callable[[str, int], None] = lambda *_: None
    saved: Callable[[int, float, float], None] = lambda *_: None

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints of the run are."""
        return self.directory / "checkpoints"


def _num_microbatches(settings: StageSettings) -> int:
    ranks = parallel_state.get_data_parallel_world_size()
    return int(settings.global_batch_size // (settings.micro_batch_size * ranks))


def _sum_over_ranks(values: Tensor) -> list[float]:
    if distributed.get_world_size() > 1:
        values = values.to(torch.cuda.current_device())
        distributed.all_reduce(values)
    return values.tolist()


@dataclass
class _Window:
    """Since the last log line."""

    started: float
    tokens: float = 0.0
    iterations: int = 0
    # Of all before it, waiting for samples.
    data_seconds: float = 0.0


def _saver(run: Run) -> Saver:
    settings = run.settings
    timeout = timedelta(minutes=settings.distributed_timeout_minutes)
    return Saver(
        run.checkpoints,
        run.about,
        Retention(keep_last=settings.keep_last, keep_every=settings.keep_every),
        run.may_write,
        async_timeout=timeout if settings.async_save else None,
    )


class Loop:
    """Drives a `TrainingState` to `train_iters`; made on all ranks together."""

    def __init__(self, run: Run, state: TrainingState) -> None:
        self.run, self.state = run, state
        self._saver = _saver(run)
        self.loss = math.nan
        self.mtp_losses: list[float] = []
        self.validation_loss: float | None = None
        self._window = _Window(time.monotonic())
        settings = run.settings
        self._slow = SlowRanks(
            get_model_config(state.chunks[0]),
            torch.device(torch.cuda.current_device()),
            fully_sharded=settings.use_torch_fsdp2,
        )
        alone = parallel_state.get_data_parallel_world_size(with_context_parallel=True) == 1
        self._gradients = LocalGradients(state.chunks, alone=alone)
        self._biases = RouterBiases(state.chunks if settings.skip_bad_batches else [])
        self._watch = Watch(run.metrics, run.attempt, run.directory, state.iteration)
        self._resources = Resources(
            state.chunks,
            torch.device(torch.cuda.current_device()),
            attempt=run.attempt,
            iteration=state.iteration,
            every=settings.save_interval,
        )

    def train(self) -> Outcome:
        """Iterate until `train_iters` or until asked to stop; the last state is always saved.

        Raises:
            TrainingError: the loss or the gradient is not finite; nothing is saved.
            CheckpointError: a checkpoint could not be written.
        """
        if self.run.metrics is not None:
            checkpoint_space.warn_when_scarce(
                self.run.checkpoints, checkpoint_bytes(self.run.settings)
            )
        try:
            outcome = self._train()
        except TrainingError:
            # Of all ranks alike. What is being saved is from before it.
            self._saver.wait_after_failure()
            raise
        self._wait_for_save()
        self._note_save()
        return outcome

    def _train(self) -> Outcome:
        run, state, settings = self.run, self.state, self.run.settings
        batches = Consumed(run.train_batches(state.consumed_samples))
        self._window = _Window(time.monotonic())
        first = True
        while state.iteration < settings.train_iters:
            stop = self._iterate(batches)
            if stop:
                # A failed save asks all ranks to stop, as a signal does; here they all raise it.
                self._wait_for_save()
            if first:
                run.after_first_iteration()
                first = False
            done = state.iteration >= settings.train_iters
            every = settings.eval_interval
            if done or (every and state.iteration % every == 0):
                self._validate()
            if done or stop or state.iteration % settings.save_interval == 0:
                self._save()
            if stop and not done:
                return "preempted"
        return "completed"

    def _iterate(self, batches: Consumed) -> bool:
        run, state = self.run, self.state
        run.report("iterate", state.iteration)
        self._begin(batches)
        count = _num_microbatches(run.settings)
        losses = micro_batch_losses(run.settings, state.chunks, batches, num_microbatches=count)
        asked = run.stop_requested() or self._saver.failed
        stop = torch.tensor([float(asked)], dtype=torch.float64)
        further = take_prediction_losses(run.settings.mtp_num_layers or 0, count)
        read = consumed.halves(batches.checksum(state.consumed_samples))
        run.report("reduce", state.iteration)
        # float32 numbers add up exactly in float64, in whatever order ranks add them.
        sums = _sum_over_ranks(
            torch.cat((summed(losses), stop, torch.tensor(read, dtype=torch.float64), further))
        )
        loss, tokens, stops, high, low, *self.mtp_losses = sums
        lr = state.optimizer.param_groups[0]["lr"]
        updated, grad_norm = False, None
        if math.isfinite(loss):
            run.report("update", state.iteration)
            updated, grad_norm = take_step(state.optimizer, run.settings.clip_grad)
        wrong = what_is_wrong(loss, grad_norm)
        if wrong:
            self._skip(wrong, losses, batches)
            grad_norm = None
        self._count(updated, consumed.joined(high, low))
        self.loss = loss / tokens
        self._watch.loss(state.iteration, self.loss)
        self._log(lr, grad_norm, batches.seconds)
        return stops > 0

    def _begin(self, batches: Consumed) -> None:
        batches.forget()
        self._gradients.forget()
        self._biases.keep()
        self._slow.own.begin()
        for chunk in self.state.chunks:
            chunk.zero_grad_buffer()
        self.state.optimizer.zero_grad()

    def _skip(self, wrong: str, losses: Tensor, batches: Consumed) -> None:
        """Go on without a step for this batch; as `skip_or_stop`."""
        state, iteration = self.state, self.state.iteration + 1
        where = origin(losses, gradients=self._gradients.finite(), ids=batches.ids)
        message = skip_or_stop(
            iteration,
            wrong,
            where,
            skipped=state.skipped_batches,
            allowed=self.run.settings.skip_bad_batches,
        )
        self._biases.put_back()
        state.skipped_batches += 1
        self.mtp_losses = []
        self._watch.skipped(iteration, message, where)

    def _count(self, updated: bool, read: int) -> None:
        settings, state = self.run.settings, self.state
        state.scheduler.step(increment=settings.global_batch_size if updated else 0)
        state.iteration += 1
        state.consumed_samples += settings.global_batch_size
        state.consumed_tokens += settings.global_batch_size * settings.seq_length
        state.skipped_iterations += not updated
        if state.sample_checksum is not None:
            state.sample_checksum = consumed.added(state.sample_checksum, read)

    def _log(self, lr: float, grad_norm: float | None, data_seconds: float) -> None:
        run, state, window = self.run, self.state, self._window
        window.tokens += run.settings.global_batch_size * run.settings.seq_length
        window.iterations += 1
        last = state.iteration >= run.settings.train_iters
        if not (last or state.iteration % run.settings.log_interval == 0):
            return
        self._watch.slow(state.iteration, self._slow.end_window())
        load, rows = self._resources.end_window(state.iteration, last=last)
        if run.metrics is None:
            return
        # Before the row of the iteration, which others look for at the end of the file.
        run.metrics.note(rows)
        seconds = time.monotonic() - window.started
        tflops = run.flops_per_token * window.tokens / seconds / 1e12
        peak = run.peak_tflops and run.peak_tflops * distributed.get_world_size()
        run.metrics.train(
            MetricsRow(
                attempt=run.attempt,
                iteration=state.iteration,
                consumed_samples=state.consumed_samples,
                consumed_tokens=state.consumed_tokens,
                time=time.time(),
                loss=self.loss if math.isfinite(self.loss) else None,
                mtp_losses=self.mtp_losses,
                lr=lr,
                grad_norm=grad_norm,
                skipped_iterations=state.skipped_iterations,
                skipped_batches=state.skipped_batches,
                sample_checksum=consumed.as_text(state.sample_checksum)
                if state.sample_checksum is not None
                else None,
                seconds_per_iteration=seconds / window.iterations,
                tokens_per_second=window.tokens / seconds,
                tflops_per_second=tflops,
                peak_share=tflops / peak if peak else None,
                data_seconds=(data_seconds - window.data_seconds) / window.iterations,
                expert_load=load,
            )
        )
        self._window = _Window(time.monotonic(), data_seconds=data_seconds)

    def _validate(self) -> None:
        run, count = self.run, self.run.settings.eval_iters
        if run.valid_batches is None or count == 0:
            return
        started = time.monotonic()
        batches = run.valid_batches()
        for chunk in self.state.chunks:
            chunk.eval()
        with torch.no_grad():
            parts = []
            for _ in range(count):
                run.report("validate", self.state.iteration)
                parts.append(
                    forward_backward(
                        run.settings,
                        self.state.chunks,
                        batches,
                        num_microbatches=_num_microbatches(run.settings),
                        forward_only=True,
                    )
                )
        for chunk in self.state.chunks:
            chunk.train()
        loss, tokens = _sum_over_ranks(torch.stack(parts).sum(0))
        self.validation_loss = loss / tokens
        seconds = time.monotonic() - started
        self._window.started += seconds
        if run.metrics is not None:
            run.metrics.valid(
                ValidationRow(
                    attempt=run.attempt,
                    iteration=self.state.iteration,
                    time=time.time(),
                    loss=self.validation_loss,
                    batches=count,
                    seconds=seconds,
                )
            )

    def _wait_for_save(self) -> None:
        self.run.report("save", self.state.iteration)
        self._saver.wait()

    def _save(self) -> None:
        self.run.report("save", self.state.iteration)
        self._window.started += self._saver.save(self.state)
        self._note_save()

    def _note_save(self) -> None:
        saver = self._saver
        self.run.saved(self.state.iteration, saver.longest_seconds, saver.held_up_seconds)
