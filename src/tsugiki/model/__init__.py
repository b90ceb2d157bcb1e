"""The causal language model: loading, LoRA, export."""
