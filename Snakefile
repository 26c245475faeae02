# Text -> tokens -> GEMM shapes -> tuned GEMMs -> training -> export -> report.
#
#   snakemake train_llama3_8B_tiny                    this machine
#   snakemake --profile slurm train_llama3_8B         a cluster
#   snakemake -n train_llama3_8B --config lr=2e-4     what would run with another value, and why
#
# Everything that a stage depends on is hashed into the path of what it makes, so an edit re-runs
# exactly what it affects. See docs/configuration.md.
from snakemake.utils import min_version

min_version("9.27")


include: "rules/common.smk"
include: "rules/settings.smk"
include: "rules/data.smk"
include: "rules/gemm.smk"
include: "rules/weights.smk"
include: "rules/train.smk"
include: "rules/export.smk"
include: "rules/evaluate.smk"
include: "rules/ab.smk"
include: "rules/report.smk"
include: "rules/preflight.smk"
include: "rules/compare.smk"
include: "rules/sweep.smk"


for kind, experiment in TARGETS:

    rule:
        name:
            f"{kind}_{experiment}"
        default_target: (kind, experiment) == DEFAULT_TARGET
        input:
            wanted(kind, experiment),

    describe(f"{kind}_{experiment}", f"{MEANING[kind]} {experiment}")
