# Text to tokens.
# Inputs: the text files that the configuration names (or the hub).
# Outputs: manifests; the tokenizer, the .bin/.idx files and the index caches stand beside them.


rule tokenizer:
    input:
        settings=frozen("tokenizer", "tokenizer"),
        text=files_for("tokenizer"),
    output:
        paths.ARTIFACT["tokenizer"],
    log:
        paths.log_pattern("tokenizer"),
    resources:
        **cluster_for("tokenizer"),
    params:
        options=options("tokenizer"),
        files=files_state("tokenizer"),
    shell:
        "python -u -m primus.tokenizer --settings {input.settings:q} "
        "--options {params.options:q} --output {output:q} 2>&1 | tee -i {log:q}"


rule data:
    input:
        settings=frozen("data", "data"),
        tokenizer=made_by("tokenizer", "data"),
        text=files_for("data"),
    output:
        paths.ARTIFACT["data"],
    log:
        paths.log_pattern("data"),
    threads: threads_for("data")
    resources:
        **cluster_for("data"),
    params:
        options=options("data"),
        files=files_state("data"),
    shell:
        "python -u -m primus.data --settings {input.settings:q} "
        "--options {params.options:q} --tokenizer {input.tokenizer:q} "
        "--output {output:q} 2>&1 | tee -i {log:q}"


rule samples:
    input:
        settings=frozen("samples", "samples"),
        data=made_by("data", "samples"),
    output:
        paths.ARTIFACT["samples"],
    log:
        paths.log_pattern("samples"),
    resources:
        **cluster_for("samples"),
    params:
        options=options("samples"),
    shell:
        "python -u -m primus.samples --settings {input.settings:q} "
        "--options {params.options:q} --data {input.data:q} --output {output:q} 2>&1 | tee -i {log:q}"
