"""ReGenesis (arXiv 2410.02108): reasoning paths from general guidelines, and fine-tuning on the right ones.

May import what recipes may, and no other method's folder.
"""
