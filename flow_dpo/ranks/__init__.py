"""How does one learner run in several processes? Rows are dealt to ranks, and every rank takes the same step.

May import learner, models, data, plugins, verify and core.
"""
