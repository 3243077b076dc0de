"""How good is it, and how surely? Accuracy, pass@k, contamination, step validity, judges and comparisons.

May import traces, runs, workers, recipes, engines, learner, models, data, verify and core.
"""
