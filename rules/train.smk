# The run. Only its small manifest is declared: Snakemake deletes declared outputs, and must never
# come near checkpoints, metrics and the logs of the attempts, which stand beside the manifest.


rule train:
    input:
        settings=frozen("train", "train"),
        samples=made_by("samples", "train"),
        tokenizer=made_by("tokenizer", "train"),
        tuned=made_by("tune", "train"),
        weights=made_by("weights", "train"),
    output:
        paths.ARTIFACT["train"],
    log:
        paths.log_pattern("train"),
    threads: threads_for("train")
    resources:
        **cluster_for("train"),
    params:
        extent=extent("train"),
        options=options("train"),
        tuned=flag("--tuned", "tuned"),
        weights=flag("--weights", "weights"),
    shell:
        "python -u -m primus.train --settings {input.settings:q} "
        "--options {params.options:q} --samples {input.samples:q} "
        "--tokenizer {input.tokenizer:q} {params.tuned:q} {params.weights:q} "
        "--output {output:q} 2>&1 | tee -i {log:q}"
