"""The whole training state saved and loaded in one process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_tiny import tiny, tiny_deepseek

from primus.artifacts.provenance import libraries
from primus.errors import CheckpointError
from tests.unit.crafted import vouch

pytestmark = pytest.mark.usefixtures("single_rank", "eager")

ABOUT = {
    "key": "0" * 12,
    "parent": None,
    "attempt": 1,
    "samples_fingerprint": "s",
    "tokenizer_fingerprint": "t",
    "tuned_sha256": None,
    "code_commit": "c",
    "code_dirty": False,
    "libraries": libraries(),
    "layout": {"tensor_model_parallel_size": 1},
}
KINDS = [
    pytest.param({"use_distributed_optimizer": True}, id="distributed optimizer, fp32"),
    pytest.param({"use_distributed_optimizer": True, "bf16": True}, id="distributed, bf16"),
    pytest.param({"use_distributed_optimizer": False}, id="plain optimizer, fp32"),
    pytest.param({"use_distributed_optimizer": False, "bf16": True}, id="plain optimizer, bf16"),
    pytest.param({"hidden_dropout": 0.1, "attention_dropout": 0.1}, id="dropout"),
    pytest.param({"family": "deepseek_v3", "bf16": True}, id="experts, bf16"),
    pytest.param(
        {"family": "deepseek_v3", "use_distributed_optimizer": False, "hidden_dropout": 0.1},
        id="experts, plain optimizer, dropout",
    ),
]


class Training:
    """A model that trains on random tokens; losses depend on its state alone."""

    def __init__(self, family: str | None = None, **changes: Any) -> None:
        from primus.trainer import parallel
        from primus.trainer.checkpoint import TrainingState
        from primus.trainer.model import model_config
        from primus.trainer.optimizer import build_optimizer, build_scheduler

        changes = {"lr_warmup_iters": 0} | changes
        self.settings = tiny_deepseek(family, **changes) if family else tiny(**changes)
        parallel.seed(self.settings)
        config = model_config(self.settings)
        chunks = parallel.wrap(self.settings, config, parallel.build_chunks(self.settings, config))
        optimizer = build_optimizer(self.settings, chunks)
        config.grad_scale_func = optimizer.scale_loss
        self.state = TrainingState(
            chunks=chunks,
            optimizer=optimizer,
            scheduler=build_scheduler(self.settings, optimizer),
        )

    def steps(self, count: int) -> list[float]:
        from primus.trainer.forward_backward import forward_backward

        losses = []
        for _ in range(count):
            self.state.iteration += 1
            for chunk in self.state.chunks:
                chunk.zero_grad_buffer()
            self.state.optimizer.zero_grad()
            total = forward_backward(
                self.settings, self.state.chunks, self.batches(), num_microbatches=2
            )
            self.state.optimizer.step()
            self.state.scheduler.step(increment=self.settings.global_batch_size)
            losses.append(float(total[0] / total[1]))
        return losses

    def batches(self) -> Iterator[dict[str, torch.Tensor]]:
        # Not from the default generator: that one belongs to the state (dropout).
        generator = torch.Generator().manual_seed(self.state.iteration)
        shape = (self.settings.micro_batch_size, self.settings.seq_length)
        while True:
            tokens = torch.randint(0, 512, shape, generator=generator)
            yield {
                "tokens": tokens,
                "labels": tokens.roll(-1, 1),
                "position_ids": torch.arange(shape[1]).expand(shape),
                "loss_mask": torch.ones(shape),
            }


@pytest.mark.parametrize("changes", KINDS)
def test_training_goes_on_bitwise(tmp_path: Path, changes: dict[str, Any]) -> None:
    from primus.trainer.checkpoint import load_newest, save

    whole = Training(**changes).steps(5)
    assert len(set(whole)) == 5
    first = Training(**changes)
    assert first.steps(3) == whole[:3]
    path = save(first.state, tmp_path, ABOUT)
    assert path == tmp_path / "iter_0000003"
    assert first.steps(2) == whole[3:], "saving changes nothing"
    second = Training(**changes)
    assert load_newest(second.state, tmp_path, ABOUT["key"]) == path.name  # type: ignore[arg-type]
    assert second.state.iteration == 3
    assert second.steps(2) == whole[3:]


def test_progress_is_kept_and_older_checkpoints_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before they counted samples and skipped batches: the checksum is then not known."""
    from primus.trainer import checkpoint

    training = Training()
    training.steps(1)
    training.state.sample_checksum, training.state.skipped_batches = 2**64 - 3, 2
    checkpoint.save(training.state, tmp_path / "new", ABOUT)
    whole = checkpoint._sharded_state

    def older(*args: Any, **kwargs: Any) -> dict[str, Any]:
        state = whole(*args, **kwargs)
        del state["progress"]["sample_checksum"], state["progress"]["skipped_batches"]
        return state

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "_sharded_state", older)
        checkpoint.save(training.state, tmp_path / "old", ABOUT)
    for root, wanted in (("new", (2**64 - 3, 2)), ("old", (None, 0))):
        other = Training().state
        assert checkpoint.load_newest(other, tmp_path / root, "0" * 12)
        assert (other.sample_checksum, other.skipped_batches) == wanted


def test_no_checkpoint_at_all_is_a_start_from_the_beginning(tmp_path: Path) -> None:
    from primus.trainer.checkpoint import load_newest

    assert load_newest(Training().state, tmp_path / "none", "k") is None


def test_saving_again_replaces_a_damaged_checkpoint(tmp_path: Path) -> None:
    from primus.trainer.checkpoint import load_newest, save

    training = Training()
    training.steps(1)
    path = save(training.state, tmp_path, ABOUT)
    (path / "common.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of 1 checkpoints is good"):
        load_newest(training.state, tmp_path, ABOUT["key"])  # type: ignore[arg-type]
    save(training.state, tmp_path, ABOUT)
    assert load_newest(training.state, tmp_path, ABOUT["key"]) == path.name  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.glob("damaged-*")] == ["damaged-iter_0000001-0"]


@pytest.mark.fault(
    8,
    injected="one flipped bit, in files that a manifest vouches for by SHA-256 and by BLAKE3",
    observed="the file is named, the checkpoint before is loaded",
)
@pytest.mark.parametrize("older", [True, False], ids=["SHA-256", "BLAKE3"])
def test_either_hash_vouches_for_a_file(
    tmp_path: Path, older: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Checkpoints of versions that hashed by SHA-256 load; neither hash lets a changed bit pass."""
    from primus.trainer.checkpoint import load_newest, save

    training = Training()
    for _ in range(2):
        training.steps(1)
        newest = save(training.state, tmp_path, ABOUT)
    if older:
        vouch(newest)
    algorithm = "sha256" if older else "blake3"
    files = json.loads((newest / "manifest.json").read_text())["files"]
    assert all(record.keys() == {"size", algorithm} for record in files.values())
    other = Training()
    assert load_newest(other.state, tmp_path, str(ABOUT["key"])) == newest.name
    assert other.steps(1) == training.steps(1)
    content = bytearray((newest / "__0_0.distcp").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "__0_0.distcp").write_bytes(content)
    assert load_newest(Training().state, tmp_path, str(ABOUT["key"])) == "iter_0000001"
    assert f"__0_0.distcp: {'SHA-256' if older else 'BLAKE3'} " in caplog.text


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.fault(
    5,
    6,
    injected="ENOSPC from each step of a save, fsync among them",
    observed="nothing is published, nothing temporary is left, the cause is named",
)
@pytest.mark.parametrize(
    "target",
    [
        "torch.distributed.checkpoint.filesystem.FileSystemWriter.write_data",
        "torch.distributed.checkpoint.filesystem.FileSystemWriter.finish",
        "primus.trainer.checkpoint_write.save_config",
        "pathlib.Path.write_bytes",
        "primus.trainer.checkpoint_directory.fsync_files",
        "primus.artifacts.run.CheckpointManifest.save",
        "os.fsync",
        "os.write",
        "os.rename",
    ],
)
def test_a_full_disk_keeps_the_checkpoints_before(
    tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from primus.trainer.checkpoint import save
    from primus.trainer.checkpoint_directory import verify

    training = Training()
    training.steps(1)
    good = save(training.state, tmp_path, ABOUT)
    training.steps(1)
    with monkeypatch.context() as patched:
        patched.setattr(target, full_disk)
        with pytest.raises(CheckpointError, match=r"iteration 2: .*No space left on device"):
            save(training.state, tmp_path, ABOUT)
    assert [path.name for path in tmp_path.iterdir()] == [good.name]
    verify(good, "0" * 12)
    assert save(training.state, tmp_path, ABOUT).name == "iter_0000002"
