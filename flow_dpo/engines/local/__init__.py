"""How does this process generate for many requests at once? Continuous batching over a prefix-sharing KV cache.

May import what engines may.
"""
