"""Callbacks of a training run: the run folder's writer, budget, progress and warnings of collapse.

May import what runs may.
"""
