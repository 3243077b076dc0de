"""What comes from outside the package? Flows, recipes, engines and more from a file, a module or a plug-in.

May import core.
"""
