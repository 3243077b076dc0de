"""LLM-as-a-judge: which of two solutions a language model prefers. Protocol, backends and results.

May import what evaluate may.
"""
