"""How good is it, and how sure is that? Accuracy with intervals, pass@k, contamination, steps, judges, comparisons.

May import traces, runs, workers, trackers, recipes, engines, ranks, learner, models, data, plugins, verify and core.
"""
