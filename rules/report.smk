# One self-contained page about a run, and the same figures as JSON.


rule report:
    input:
        settings=or_fail(frozen_for_report),
        train=made_by("train", "report"),
        samples=made_by("samples", "report"),
        data=made_by("data", "report"),
        tokenizer=made_by("tokenizer", "report"),
        shapes=made_by("shapes", "report"),
        tuned=made_by("tune", "report"),
        export=made_by("export", "report"),
        evaluation=evaluation_for("report"),
        stage_settings=all_frozen("report"),
    output:
        html=paths.ARTIFACT["report"],
        json=paths.REPORT_JSON,
        png=paths.LOSS_PNG,
    log:
        paths.log_pattern("report"),
    resources:
        **cluster_for("report"),
    params:
        options=options("report"),
        shapes=flag("--shapes", "shapes"),
        tuned=flag("--tuned", "tuned"),
        evaluation=flag("--evaluation", "evaluation"),
        # Tracked, with its content: what was compared again is shown.
        ab=compared,
        ab_state=compared_state,
    shell:
        "python -u -m primus.report --settings {input.settings:q} "
        "--options {params.options:q} --train {input.train:q} --samples {input.samples:q} "
        "--data {input.data:q} --tokenizer {input.tokenizer:q} {params.shapes:q} {params.tuned:q} "
        "--export {input.export:q} {params.evaluation:q} {params.ab:q} --stage-settings {input.stage_settings:q} "
        "--loss-png {output.png:q} --output {output.html:q} 2>&1 | tee -i {log:q}"
