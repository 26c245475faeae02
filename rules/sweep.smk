# Many runs of one experiment: snakemake sweep_<name>, for each file of configs/sweeps.
# A point is the experiment with other values: its stages are those of every run. Here is only what
# asks for them, and the one report on all.


for name in pipeline.mentioned(sys.argv, SWEEPS):

    rule:
        name:
            f"sweep_{name}"
        input:
            points_of(name),

    describe(f"sweep_{name}", f"train every point of {name}, and report on them")


rule sweep:
    input:
        runs=made_by_points("train"),
        reports=made_by_points("report"),
    output:
        html=paths.SWEEP,
        json=paths.SWEEP_JSON,
    log:
        "output/logs/sweep/{sweep}.{digest}.log",
    localrule: True
    params:
        # Untracked (see options): the digest in the path already says all that matters.
        config=lambda wildcards, output: json.dumps(PIPELINE.overrides),
    shell:
        "python -u -m primus.sweep {wildcards.sweep:q} --output {output.html:q} "
        "--config {params.config:q} 2>&1 | tee -i {log:q}"
