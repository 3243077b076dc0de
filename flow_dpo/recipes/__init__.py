"""Which methods, with which values? One folder or file a recipe; `presets` finds them by name.

May import core, data, learner (its settings) and other rooms below; never runs, engines, report or cli.
"""
