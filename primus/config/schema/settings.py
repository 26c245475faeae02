"""All keys of an experiment in one flat namespace."""

from __future__ import annotations

from primus.config.schema.ab import Ab
from primus.config.schema.architecture import Architecture
from primus.config.schema.cluster import Slurm
from primus.config.schema.data import Data
from primus.config.schema.evaluation import Evaluation
from primus.config.schema.experts import Experts
from primus.config.schema.export import ModelCard
from primus.config.schema.hardware import Hardware
from primus.config.schema.keys import Name, key
from primus.config.schema.latent_attention import LatentAttention
from primus.config.schema.parallel import Parallel
from primus.config.schema.precision import Precision
from primus.config.schema.preflight import Preflight
from primus.config.schema.tracking import Tracking
from primus.config.schema.training import Training
from primus.config.schema.tuning import GemmTuning


class Settings(
    Training, Tracking, Precision, Parallel, Data, Hardware, Experts, LatentAttention, Architecture
):
    """A resolved experiment: every key has its value.

    The layers, later ones win: schema defaults, `configs/models/<model>.yaml`,
    `configs/hardware/<hardware>.yaml`, `configs/recipes/<recipe>.yaml` where one is named,
    `configs/<experiment>.yaml`, `--config` on the command line.
    """

    experiment: Name = key(doc="Name of the file under configs/.")
    model: Name = key(doc="Name of the file under configs/models.")
    recipe: Name | None = key(
        None, doc="Name under configs/recipes: data, batch and schedule that experiments share."
    )
    hardware: Name = key(
        "auto",
        doc="Name under configs/hardware; auto: what this machine has, resolved before anything.",
        identity=("tune", "train"),
    )
    gemm_tuning: GemmTuning = key(GemmTuning(), doc="Offline GEMM tuning.")
    preflight: Preflight = key(Preflight(), doc="Checks of the nodes before a training.")
    # Null by default: what was exported before there were cards need not be exported again.
    model_card: ModelCard | None = key(
        None, doc="What only the user knows about the exported model.", extent="export"
    )
    evaluation: Evaluation = key(Evaluation(), doc="Perplexity of the exported model.")
    ab: Ab = key(Ab(), doc="Tuned GEMMs against the default ones in the experiment's training.")
    slurm: Slurm = key(Slurm(), doc="What jobs on a SLURM cluster ask for.")
