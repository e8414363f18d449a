"""PEFT's format: names of tensors, config, alphas, profiles."""
