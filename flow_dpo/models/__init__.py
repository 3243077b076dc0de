"""How is a model loaded, and how does a turn become token ids? Loading, chat templates, the context window,
a model behind an address.

May import plugins, verify and core.
"""
