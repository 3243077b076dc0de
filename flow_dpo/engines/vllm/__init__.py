"""How is text sampled with vLLM? In this process, or by a server whose adapters follow the policy.

May import what engines may.
"""
