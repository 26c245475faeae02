"""What an exported model makes of text that it was not trained on."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from primus.artifacts.evaluation import EvaluationManifest
from primus.artifacts.export import ExportManifest
from primus.artifacts.provenance import code_version, libraries
from primus.artifacts.tokens import DataManifest, SamplesManifest
from primus.config.frozen import StageSettings
from primus.dataset import held_out
from primus.dataset.text import expand
from primus.dataset.tokenizer import TOKENIZER_JSON, read_tokenizer
from primus.errors import DataError
from primus.files import sha256_file
from primus.huggingface.harness import Tasks, ask, open_tasks
from primus.huggingface.load import device_of, load_model
from primus.huggingface.score import score


def evaluate(settings: StageSettings, export: Path, samples_path: Path) -> EvaluationManifest:
    """Predict the text that the settings name.

    Raises:
        DataError: the text cannot be read, was trained on, or is of another tokenizer.
        UserError: a task of lm-evaluation-harness, or the library, is not there.
        ArtifactError: the export or the token files are damaged.
    """
    exported, samples = ExportManifest.load(export), SamplesManifest.load(samples_path)
    data = DataManifest.load(samples_path.parent / samples.data_manifest)
    if data.tokenizer_fingerprint != exported.tokenizer_fingerprint:
        raise DataError(
            f"{export}: tokenizer_fingerprint = {exported.tokenizer_fingerprint}, but the samples "
            f"have {data.tokenizer_fingerprint}. Fix: name the samples of the run"
        )
    started, how = time.time(), settings.evaluation
    tasks = _tasks(how)
    manager = open_tasks(tasks) if tasks.names else None
    names = expand(how.texts, "evaluation.texts")
    records = held_out.text_records(names, data)
    loaded = load_model(export.parent, device_of(how.device, "evaluation.device"))
    tokenizer = read_tokenizer(export.parent / TOKENIZER_JSON)
    found = (
        held_out.documents_of_texts(names, how.json_key, tokenizer)
        if names
        else held_out.documents_of_share(samples_path, data.eod_id, tokenizer)
    )
    counted = held_out.Counted(held_out.first_tokens(found, how.max_tokens, tokenizer))
    length = how.max_length or settings.seq_length
    stride = how.stride or length
    scores = score(loaded, counted, max_length=length, stride=stride, batch_size=how.batch_size)
    harness = ask(loaded, tasks, manager, batch_size=how.batch_size) if manager else None
    commit, dirty = code_version()
    return EvaluationManifest(
        experiment=exported.experiment,
        key=exported.key,
        checkpoint=exported.checkpoint,
        export_sha256=sha256_file(export),
        settings=settings.extent,
        source="texts" if names else "valid",
        texts=records,
        data_fingerprint=None if names else data.fingerprint,
        split=None if names else samples.split,
        documents=counted.documents,
        tokens=scores.tokens,
        bytes=counted.bytes,
        windows=scores.windows,
        max_length=length,
        stride=stride,
        loss=scores.loss,
        perplexity=math.exp(scores.loss),
        bits_per_byte=scores.nats / math.log(2) / counted.bytes,
        lm_eval=harness,
        dtype=loaded.dtype,
        device=str(loaded.device),
        libraries=libraries(),
        code_commit=commit,
        code_dirty=dirty,
        seconds=time.time() - started,
    )


def _tasks(how: Any) -> Tasks:
    return Tasks(
        names=how.lm_eval_tasks,
        include_path=how.lm_eval_include_path,
        num_fewshot=how.lm_eval_num_fewshot,
        limit=how.lm_eval_limit,
    )
