# The settings of one stage, frozen: a configuration edited later cannot leak into a waiting job.


rule settings:
    output:
        paths.SETTINGS,
    log:
        "output/logs/settings/{owner}.{stage}.{digest}.log",
    localrule: True
    params:
        # Untracked (see options): the digest in the path already says all that matters.
        experiment=or_fail(
            lambda wildcards, output: PIPELINE.by_digest(
                wildcards.stage, wildcards.owner, wildcards.digest
            ).settings.experiment
        ),
        config=lambda wildcards, output: json.dumps(PIPELINE.overrides),
    shell:
        "python -m primus.config freeze {params.experiment:q} --stage {wildcards.stage:q} "
        "--output {output:q} --config {params.config:q} 2>&1 | tee {log:q}"
