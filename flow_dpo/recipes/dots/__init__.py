"""DOTS (arXiv 2410.03864): a planner learns which way of solving suits a problem, programs included.

May import what recipes may, and no other method's folder.
"""
