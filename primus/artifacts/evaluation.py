"""What the evaluation of an exported model found."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from primus.artifacts.manifest import FileRecord, Manifest


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskMetric(_Part):
    """One figure of a task: its name and filter as lm-evaluation-harness calls them.

    Attributes:
        stderr: standard error; null where the library gives none.
    """

    name: str
    filter: str
    value: float
    stderr: float | None


class TaskScore(_Part):
    """What a model got in one task, or in a group of them.

    Attributes:
        version: of the task. samples: documents that were asked; null for a group.
    """

    version: str
    num_fewshot: int | None
    samples: int | None
    metrics: list[TaskMetric]


class Harness(_Part):
    """Tasks of lm-evaluation-harness; `library` is its version."""

    library: str
    tasks: dict[str, TaskScore]


class EvaluationManifest(Manifest):
    """eval.json: how well an exported model predicts text that it was not trained on.

    Attributes:
        checkpoint: name of the one that was exported. export_sha256: of the export's manifest.
        settings: of the evaluation; what makes it another one.
        source: "texts", or "valid": the validation share of the dataset.
        texts: files by path as configured; empty for the share.
        data_fingerprint, split: of the share; null for files.
        documents, tokens, bytes: that were predicted; bytes of the text in UTF-8.
        windows: passes of the model. max_length, stride: in tokens.
        loss: mean cross entropy in nats per token. perplexity: its exponential.
        bits_per_byte: all nats over ln 2 and the bytes; comparable between tokenizers.
        lm_eval: tasks that were asked for besides; null without any.
        dtype, device: of the weights. seconds: that the evaluation took.
    """

    kind: ClassVar[str] = "evaluation"

    experiment: str
    key: str
    checkpoint: str
    export_sha256: str
    settings: dict[str, Any]
    source: str
    texts: dict[str, FileRecord] = {}
    data_fingerprint: str | None = None
    split: str | None = None
    documents: int
    tokens: int
    bytes: int
    windows: int
    max_length: int
    stride: int
    loss: float
    perplexity: float
    bits_per_byte: float
    lm_eval: Harness | None = None
    dtype: str
    device: str
    libraries: dict[str, str]
    code_commit: str
    code_dirty: bool
    seconds: float
