"""In a job: what steps on its nodes do with a tuned result. SETTINGS TUNED OVERRIDE NODES OUTPUT"""

from __future__ import annotations

import sys
from pathlib import Path

from primus.config.frozen import StageSettings
from primus.gemm.tuned import TunedResult
from primus.tune_verify import watched_use

settings, tuned, override, nodes, output = sys.argv[1:]
use = watched_use(
    StageSettings.load(Path(settings), "train"),
    TunedResult.load(tuned),
    {"HIPBLASLT_TUNING_OVERRIDE_FILE": override},
    nodes=int(nodes),
    rank_module="fake_hipblaslt_rank",
)
Path(output).write_text(use.model_dump_json(indent=2))
