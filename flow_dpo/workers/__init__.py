"""Who samples the rollouts, and where? In this process today; the seam for servers and a cluster.

May import recipes, engines, ranks, learner, models, data, plugins, verify and core.
"""
