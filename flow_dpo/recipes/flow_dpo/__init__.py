"""Flow-DPO (arXiv 2410.22304), and a flow of attempts that Stop judges, which learns from every verdict.

May import what recipes may.
"""
