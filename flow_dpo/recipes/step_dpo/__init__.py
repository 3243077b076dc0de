"""Step-DPO (arXiv 2406.18629): the first wrong step of a solution against right steps from the same state.

May import what recipes may, and no other method's folder.
"""
