# The last good checkpoint as a Hugging Face directory.
# Outputs: its manifest; config, weights (safetensors) and tokenizer stand beside it.


rule export:
    input:
        settings=frozen("export", "export"),
        train=made_by("train", "export"),
        tokenizer=made_by("tokenizer", "export"),
    output:
        paths.ARTIFACT["export"],
    log:
        paths.log_pattern("export"),
    resources:
        **cluster_for("export"),
    params:
        options=options("export"),
    shell:
        "python -u -m primus.export --settings {input.settings:q} "
        "--options {params.options:q} --train {input.train:q} "
        "--tokenizer {input.tokenizer:q} --output {output:q} 2>&1 | tee -i {log:q}"
