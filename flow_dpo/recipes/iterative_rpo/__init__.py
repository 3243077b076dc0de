"""Iterative reasoning preference optimization (Pang et al., arXiv 2404.19733): DPO and likelihood, round after round.

May import what recipes may, and no other method's folder.
"""
