"""Rollout workers: they sample and grade trees, in this process today; the seam for servers and a cluster.

May import recipes, engines, learner, models, data, verify and core.
"""
