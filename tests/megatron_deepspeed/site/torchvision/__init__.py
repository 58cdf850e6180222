"""Megatron-DeepSpeed imports torchvision for its vision models; this stands in for it."""
