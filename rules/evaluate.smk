# How well the exported model predicts text that it was not trained on.
# Output: one small file in the run's directory. The report shows it from then on.


rule evaluate:
    input:
        settings=frozen("evaluate", "evaluate"),
        export=made_by("export", "evaluate"),
        samples=made_by("samples", "evaluate"),
        text=files_for("evaluate"),
    output:
        paths.ARTIFACT["evaluate"],
    log:
        paths.log_pattern("evaluate"),
    threads: threads_for("evaluate")
    resources:
        **cluster_for("evaluate"),
    params:
        extent=extent("evaluate"),
        options=options("evaluate"),
        files=files_state("evaluate"),
    shell:
        "python -u -m primus.evaluate --settings {input.settings:q} "
        "--options {params.options:q} --export {input.export:q} --samples {input.samples:q} "
        "--output {output:q} 2>&1 | tee -i {log:q}"
