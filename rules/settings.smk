# The settings of one stage, frozen: a configuration edited later cannot leak into a waiting job.


rule settings:
    output:
        paths.SETTINGS,
    log:
        "output/logs/settings/{owner}.{stage}.{digest}.log",
    localrule: True
    params:
        # Untracked (see options): the digest in the path already says all that matters.
        experiment=of_digest(lambda plan: plan.settings.experiment),
        config=of_digest(lambda plan: json.dumps(plan.overrides)),
    shell:
        "python -m primus.config freeze {params.experiment:q} --stage {wildcards.stage:q} "
        "--output {output:q} --config {params.config:q} 2>&1 | tee -i {log:q}"
