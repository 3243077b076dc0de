"""Who completes token ids? Engines in this process, over HTTP and scripted, and which of them a run gets.

May import learner, models, data, plugins, verify and core.
"""
