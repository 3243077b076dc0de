"""Evaluation: accuracy with intervals, pass@k, contamination, step validity, judges and comparisons.

May import traces, runs, workers, recipes, engines, learner, models, data, verify and core.
"""
