"""Tasks of lm-evaluation-harness, asked of a loaded model; the library is an extra."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from primus.artifacts.evaluation import Harness, TaskMetric, TaskScore
from primus.errors import PrimusError, UnavailableError, UserError
from primus.huggingface.load import LoadedModel

PACKAGE = "lm_eval"
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """What is asked.

    Attributes:
        names: of tasks, groups or tags. include_path: directory of tasks of one's own, or None.
        num_fewshot: examples before each question; None: as each task says.
        limit: documents of each task; None: all.
    """

    names: Sequence[str]
    include_path: str | None
    num_fewshot: int | None
    limit: int | None


def open_tasks(tasks: Tasks) -> Any:
    """The library's task manager, which knows all of the tasks; no model and no data yet.

    Raises:
        UnavailableError: the library is not installed. UserError: there is no task of a name.
    """
    try:
        version(PACKAGE)
    except PackageNotFoundError:
        raise UnavailableError(
            f"evaluation.lm_eval_tasks = {', '.join(tasks.names)}: lm-evaluation-harness is not "
            "installed. Fix: pip install -e '.[lm-eval]', or leave the key empty"
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lm_eval.tasks import TaskManager

        try:
            manager = TaskManager(include_path=tasks.include_path)
        except Exception as error:
            # Whatever stands in the files of tasks.
            raise UserError(
                f"evaluation.lm_eval_include_path = {tasks.include_path}: {_line(error)}. "
                "Fix: mend the task's file"
            ) from error
    unknown = [name for name in tasks.names if name not in manager.all_tasks]
    if unknown:
        own = f" or under {tasks.include_path}" if tasks.include_path else ""
        raise UserError(
            f"evaluation.lm_eval_tasks = {', '.join(unknown[:_SHOWN])}: no such task in "
            f"lm-evaluation-harness {version(PACKAGE)}{own}. "
            "Fix: a name that `lm-eval ls tasks` lists, or lm_eval_include_path for one's own"
        )
    return manager


def ask(loaded: LoadedModel, tasks: Tasks, manager: Any, *, batch_size: int) -> Harness:
    """Ask the model all of the tasks.

    Raises:
        PrimusError: the library failed, as where the data of a task cannot be had.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        try:
            model = HFLM(
                pretrained=loaded.model,
                tokenizer=loaded.tokenizer,
                batch_size=batch_size,
                max_length=loaded.context,
            )
            found = lm_eval.simple_evaluate(
                model=model,
                tasks=list(tasks.names),
                num_fewshot=tasks.num_fewshot,
                limit=tasks.limit,
                task_manager=manager,
                log_samples=False,
            )
        except Exception as error:
            raise PrimusError(
                f"lm-evaluation-harness {version(PACKAGE)}: {_line(error)}. Data of a task comes "
                "from the hub, or from files that its own YAML names"
            ) from error
    return harness_of(found or {}, version(PACKAGE))


def harness_of(found: Mapping[str, Any], library: str) -> Harness:
    """What `lm_eval.simple_evaluate` gave, as an artefact: numbers alone, by task.

    Args:
        library: its version.
    """
    scores = {}
    for task, values in sorted(found.get("results", {}).items()):
        counted = found.get("n-samples", {}).get(task, {}).get("effective")
        scores[task] = TaskScore(
            version=_text(found.get("versions", {}).get(task)),
            num_fewshot=_integer(found.get("n-shot", {}).get(task)),
            samples=_integer(counted),
            metrics=_metrics(values),
        )
    return Harness(library=library, tasks=scores)


def _metrics(values: Mapping[str, Any]) -> list[TaskMetric]:
    """Names are `<metric>,<filter>`, and `<metric>_stderr,<filter>` for the standard error."""
    made = []
    for name, value in sorted(values.items()):
        metric, comma, kept = name.partition(",")
        if not comma or metric.endswith("_stderr") or (number := _number(value)) is None:
            continue
        stderr = _number(values.get(f"{metric}_stderr,{kept}"))
        made.append(TaskMetric(name=metric, filter=kept, value=number, stderr=stderr))
    return made


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None  # "N/A"
    return number if math.isfinite(number) else None


def _integer(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _line(error: Exception) -> str:
    return " ".join((str(error).strip() or type(error).__name__).split())[:300].rstrip(".")
