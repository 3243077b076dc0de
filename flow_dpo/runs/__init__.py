"""Training runs: their settings, run folder, records, checkpoints, callbacks and resumption.

May import workers, recipes, engines, learner, models, data, verify and core.
"""
