"""How does vLLM generate? In this process, or as a server whose adapters follow the policy.

May import what engines may.
"""
