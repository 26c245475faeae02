"""Perplexity of the exported model: nothing here changes what another stage makes."""

from __future__ import annotations

from primus.config.schema.keys import Keys, key


class Evaluation(Keys):
    """Keys of the evaluation on held-out text."""

    texts: list[str] = key(
        [],
        doc="Held-out text, files as in data_path; empty: the validation share of the dataset.",
        extent="evaluate",
    )
    json_key: str = key(
        "text", doc="Field of a JSON line that holds the text.", extent="evaluate", min_length=1
    )
    max_length: int | None = key(
        None,
        doc="Most tokens that the model sees at a time; null: seq_length.",
        extent="evaluate",
        ge=2,
    )
    stride: int | None = key(
        None,
        doc="Tokens by which the window moves on: the others are context. Null: max_length, the "
        "windows do not overlap.",
        extent="evaluate",
        ge=1,
    )
    max_tokens: int | None = key(
        1048576,
        doc="Documents are taken until they have this many tokens; null: all.",
        extent="evaluate",
        ge=1,
    )
    lm_eval_tasks: list[str] = key(
        [],
        doc="Tasks, groups or tags of lm-evaluation-harness (the extra lm-eval) to ask besides.",
        extent="evaluate",
    )
    lm_eval_include_path: str | None = key(
        None,
        doc="Directory of YAML files of tasks of one's own; it may hold code, which is run.",
        extent="evaluate",
        min_length=1,
    )
    lm_eval_num_fewshot: int | None = key(
        None, doc="Examples before each question; null: as each task says.", extent="evaluate", ge=0
    )
    lm_eval_limit: int | None = key(
        None, doc="Documents of each task; null: all.", extent="evaluate", ge=1
    )
    batch_size: int = key(4, doc="Windows, or questions, at a time.", option="evaluate", ge=1)
    device: str | None = key(
        None, doc="As torch names it; null: a GPU where there is one.", option="evaluate"
    )
