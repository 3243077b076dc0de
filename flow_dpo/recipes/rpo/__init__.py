"""What is Reasoning Paths Optimization (arXiv 2410.10858)? Branches off a correct path, contrasted.

May import what recipes may, and no other method's folder.
"""
