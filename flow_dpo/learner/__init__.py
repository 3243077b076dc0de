"""How do examples become an update? LoRA policy, log-probabilities over packed trees, gradients, state.

May import models, data, plugins, verify and core.
"""
