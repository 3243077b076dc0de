"""Who samples the rollouts, and where? This process, running servers, or actors on a Ray cluster.

May import recipes, engines, learner, models, data, plugins, verify and core.
"""
