"""Rejection-sampling fine-tuning (arXiv 2203.14465, 2308.01825): correct rollouts, learned by their likelihood.

May import what recipes may, and no other method's folder.
"""
