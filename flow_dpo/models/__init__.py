"""How is a model loaded, and how does a turn become token ids? Loading, chat templates, the context window,
clients for models on a server.

May import plugins, verify and core.
"""
