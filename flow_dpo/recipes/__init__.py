"""Which methods are there, and with which values? One folder or file per recipe; `presets` finds them by name.

May import learner, models, data, plugins, verify and core.
"""
