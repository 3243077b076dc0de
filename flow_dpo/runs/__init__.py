"""What does a training run leave behind, and how is it resumed? Settings, run folder, checkpoints, callbacks.

May import workers, trackers, recipes, engines, ranks, learner, models, data, plugins, verify and core.
"""
