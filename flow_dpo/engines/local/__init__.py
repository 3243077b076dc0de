"""How does this process generate for many requests at once? Continuous batching over a KV cache that shares prefixes.

May import what engines may.
"""
