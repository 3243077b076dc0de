"""VinePPO (arXiv 2410.01679): values of states by rollouts from them, and advantages of steps.

May import what recipes may, and no other method's folder.
"""
