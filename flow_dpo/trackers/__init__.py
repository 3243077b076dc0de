"""Who follows a run from outside? Experiment trackers, and transformers' own callbacks.

May import recipes, engines, ranks, learner, models, data, plugins, verify and core.
"""
