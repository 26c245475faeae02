"""The trainer around Megatron-core: model, loop, checkpoints, metrics."""
