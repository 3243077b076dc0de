"""How do examples become an update? The LoRA policy, log-probabilities over packed trees, gradients, checkpoints.

May import models, data, plugins, verify and core.
"""
