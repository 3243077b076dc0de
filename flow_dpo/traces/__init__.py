"""How does a trained flow make a better single model? Traces are generated, exported and used for fine-tuning.

May import runs, workers, trackers, recipes, engines, ranks, learner, models, data, plugins, verify and core.
"""
