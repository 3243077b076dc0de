"""How does a run leave this machine? Adapters, merged models, traces and pairs on the hub, with their cards.

May import report, evaluate, traces, runs, workers, trackers, recipes, engines, ranks, learner, models, data,
plugins, verify and core.
"""
