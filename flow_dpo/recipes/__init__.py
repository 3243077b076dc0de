"""Which methods, with which values? One folder or file a recipe; `presets` finds them by name.

May import learner, models, data, plugins, verify and core.
"""
