"""A small root with one experiment, for the tests of the configuration."""

from __future__ import annotations

import shutil
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

# 22 lines; the tests count on the numbers.
EXPERIMENT = """\
model: llama3_8B_tiny
hardware: cpu
dataset: demo
data_path: [corpus/*.txt]
tokenizer_data_path: [corpus/*.txt]
tokenizer_vocab_size: 2048
seq_length: 256
split: 94,5,1
micro_batch_size: 4
global_batch_size: 16
train_iters: 200
lr: 3.0e-3
min_lr: 3.0e-4
lr_decay_style: cosine
lr_decay_iters: 200
lr_warmup_iters: 20
eval_interval: 50
eval_iters: 4
save_interval: 50
log_interval: 5
gemm_tuning:
  budget_minutes: 0.5
"""


class Root:
    """A directory with the shipped models and hardware, one text file and one experiment `x`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        shutil.copytree(REPOSITORY / "configs/models", path / "configs/models")
        shutil.copytree(REPOSITORY / "configs/hardware", path / "configs/hardware")
        (path / "corpus").mkdir()
        (path / "corpus/a.txt").write_text("some text\n")
        self.write(EXPERIMENT)

    def write(self, text: str, name: str = "configs/x.yaml") -> None:
        (self.path / name).write_text(text)

    def read(self, name: str = "configs/x.yaml") -> str:
        return (self.path / name).read_text()

    def edit(self, before: str, after: str, name: str = "configs/x.yaml") -> None:
        text = self.read(name)
        assert text.count(before) == 1, before
        self.write(text.replace(before, after), name)
