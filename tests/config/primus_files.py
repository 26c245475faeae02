"""Files in the format of Primus, written for the tests."""

from __future__ import annotations

from pathlib import Path

# 31 lines; the tests count on the numbers.
EXPERIMENT = """\
work_group: ${PRIMUS_TEAM:lab}
user_name: someone
exp_name: ${PRIMUS_EXP_NAME:small}
workspace: ./results

modules:
  pre_trainer:
    framework: megatron
    config: pre_trainer.yaml
    model: llama3_8B_tiny.yaml
    overrides:
      wandb_project: "mine"
      train_iters: 50
      micro_batch_size: 2
      global_batch_size: 16
      seq_length: ${PRIMUS_SEQ_LENGTH:256}
      max_position_embeddings: 256
      lr: 1e-5
      min_lr: 0.0
      lr_warmup_iters: 2
      norm_epsilon: 1.0e-6
      init_method_std: 0.008
      tensor_model_parallel_size: 1
      sequence_parallel: 1
      mock_data: true
      train_data_path: null
      ckpt_format: torch
      save: null
      mtp_num_layers: 0
      tokenizer_type: Llama3Tokenizer
      tokenizer_model: some/tokenizer
"""

MODEL = """\
extends:
  - own_base.yaml
num_layers: 2
hidden_size: 64
ffn_hidden_size: 128
num_attention_heads: 4
num_query_groups: 2
tokenizer_model: some/other
"""

BASE = """\
model_type: gpt
position_embedding_type: rope
normalization: RMSNorm
group_query_attention: true
max_position_embeddings: 512
vocab_size: null
num_layers: 24
rotary_base: 500000
rotary_scaling_factor: 40
kv_lora_rank: 32
moe_router_topk: 2
sequence_parallel: true
transformer_impl: transformer_engine
"""


def write_experiment(folder: Path, *edits: tuple[str, str], name: str = "exp.yaml") -> Path:
    """The experiment in a folder, texts replaced."""
    text = EXPERIMENT
    for before, after in edits:
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
