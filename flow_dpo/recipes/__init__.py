"""Which methods are there, and with which values? A folder a method, and the presets that fit them to a model.

May import learner, models, data, verify and core.
"""
