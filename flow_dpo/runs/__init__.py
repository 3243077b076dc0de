"""What does a training run leave behind, and how does it go on? Settings, run folder, checkpoints, callbacks.

May import workers, trackers, recipes, engines, ranks, learner, models, data, plugins, verify and core.
"""
