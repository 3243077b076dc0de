"""Advantages from trees: SPO-chain and SPO-tree (arXiv 2505.23564), TreeRPO (2506.05183), TreeRL (2506.11902).

May import what recipes may, and no other method's folder.
"""
