"""Reasoning Paths Optimization (arXiv 2410.10858): branches off a correct path, contrasted.

May import what recipes may, and no other method's folder.
"""
