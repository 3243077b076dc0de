"""How good is it, and how surely? Accuracy with intervals, pass@k, contamination, step validity, judges, comparisons.

May import traces, runs, workers, trackers, recipes, engines, ranks, learner, models, data, plugins, verify and core.
"""
