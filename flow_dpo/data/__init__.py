"""Which problems are there? Data sets and files read into problems, strict JSON, and the embedded seed.

May import plugins, verify and core.
"""
