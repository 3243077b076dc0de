"""How does a run get to the hub? Adapters, merged models, traces and pairs on the Hugging Face hub, with cards.

May import report, evaluate, traces, runs, workers, trackers, recipes, engines, ranks, learner, models, data,
plugins, verify and core.
"""
