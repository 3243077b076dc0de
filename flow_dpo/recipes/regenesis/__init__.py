"""ReGenesis (arXiv 2410.02108): reasoning paths from general guidelines, the right ones learned.

May import what recipes may, and no other method's folder.
"""
