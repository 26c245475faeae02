# What the tuned kernels gain in an experiment's own training: snakemake ab_<experiment>
# Output: one small file, beside no run. Reports show it from then on, and none asks for it.


# Takes all that the training takes: nothing else may run beside a measurement.
rule ab:
    input:
        settings=or_fail(frozen_for_ab),
        samples=made_by("samples", "train"),
        tokenizer=made_by("tokenizer", "train"),
        tuned=made_by("tune", "train"),
        weights=made_by("weights", "train"),
    output:
        paths.AB,
    log:
        "output/logs/ab/{experiment}.{key}.log",
    threads: threads_for("train")
    resources:
        **{name: ab_for(name) for name in cluster.NAMES},
    params:
        options=options("train"),
        weights=flag("--weights", "weights"),
        rounds=ab_key("rounds"),
        warm_up=ab_key("warm_up_steps"),
        steps=ab_key("steps_per_segment"),
        minutes=ab_key("minutes"),
    shell:
        "python -u -m primus.ab --settings {input.settings:q} "
        "--options {params.options:q} --samples {input.samples:q} "
        "--tokenizer {input.tokenizer:q} --tuned {input.tuned:q} {params.weights:q} "
        "--rounds {params.rounds:q} --warm-up {params.warm_up:q} --steps {params.steps:q} "
        "--minutes {params.minutes:q} --output {output:q} 2>&1 | tee -i {log:q}"
