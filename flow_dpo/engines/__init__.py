"""Which engine completes token ids? Engines in this process, over HTTP and scripted, and how a run chooses one.

May import learner, models, data, plugins, verify and core.
"""
