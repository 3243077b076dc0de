"""Traces, verified solutions of a flow: generated, exported, and fine-tuned on to make a single model.

May import runs, workers, recipes, engines, learner, models, data, verify and core.
"""
