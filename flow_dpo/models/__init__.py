"""How is a model loaded, and how does a turn become token ids? Loading, chat templates, the context window.

May import plugins, verify and core.
"""
