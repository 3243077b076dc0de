"""Who samples the rollouts, and where? This process, running servers, or actors on a Ray cluster.

May import recipes, engines, ranks, learner, models, data, plugins, verify and core.
"""
