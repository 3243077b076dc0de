"""What is rejection sampling (arXiv 2203.14465, 2308.01825)? Correct rollouts, learned by their likelihood.

May import what recipes may, and no other method's folder.
"""
