"""Critical Plan Step Learning (arXiv 2409.08642): MCTS over plans, and preferences from step values.

May import what recipes may, and no other method's folder.
"""
