"""How does one learner run in several threads or processes? Rows are dealt to them, and all take the same step.

May import learner, models, data, plugins, verify and core.
"""
