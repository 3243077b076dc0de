"""How does someone who knows TRL train a flow? `FlowDPOTrainer` and `FlowDPOConfig`, a facade over the runs.

May import hub, report, evaluate, traces, runs, workers, trackers, recipes, engines, ranks, learner, models, data,
plugins, verify and core.
"""
