"""What comes from outside the package? Flows, recipes, engines and the like of a file, a module or a plug-in.

May import core.
"""
