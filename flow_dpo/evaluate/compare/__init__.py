"""Comparisons of trace sources and recipes over several seeds: arms, jobs, paired tests, summary.

The paper's table 1 (arXiv 2410.22304) and the controls that it lacks, over several seeds. An arm is a function that
runs the commands that make it (`arms`). A seed's commands run one after another and never twice (`jobs`). Verdicts on
the same test questions are compared (`statistics`), and everything is written to comparison.json (`summary`).

Invariant: every arm can be made by hand with the commands that comparison.json lists.

May import what evaluate may.
"""
