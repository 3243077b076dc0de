"""Flow-DPO (arXiv 2410.22304), and a variant in which Stop judges whole attempts and learns from every verdict.

May import what recipes may.
"""
