"""What does a person read? Runs, evaluations, traces, judges and comparisons as one HTML page.

    sources -> run_data -> *_section -> document.Report -> html

May import evaluate, traces, runs, workers, trackers, recipes, engines, ranks, learner, models, data, plugins,
verify and core.
"""
