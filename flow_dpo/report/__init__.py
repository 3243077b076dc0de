"""How do runs, evaluations, traces and comparisons become one page for people?

    sources -> run_data -> *_section -> document.Report -> html and markdown

Invariant: what is said is said once, in a `document.Report`; the two renderers add nothing and leave nothing out.

May import evaluate, traces, runs, workers, recipes, engines, learner, models, data, verify and core.
"""
