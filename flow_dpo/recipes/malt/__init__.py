"""MALT (arXiv 2412.01928): generate, verify, refine, with values backed up from the answers.

May import what recipes may, and no other method's folder.
"""
