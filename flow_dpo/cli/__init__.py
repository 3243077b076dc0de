"""What can be typed? One module for each command of `flow-dpo`.

May import report, evaluate, traces, runs, workers, trackers, hub, recipes, engines, ranks, learner, models, data,
plugins, verify and core.
"""
