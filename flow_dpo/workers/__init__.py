"""Who samples the rollouts, and where? This process, others on this machine, running servers, or actors on Ray.

May import recipes, engines, ranks, learner, models, data, plugins, verify and core.
"""
