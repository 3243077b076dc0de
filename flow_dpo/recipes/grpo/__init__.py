"""GRPO (arXiv 2402.03300): advantages within a problem's group, and a clipped policy gradient.

May import what recipes may, and no other method's folder.
"""
