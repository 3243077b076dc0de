"""Command line: one module for each command of `flow-dpo`.

May import every other room.
"""
