"""Which of two solutions does a language model prefer? The questions, the judges and their results.

May import what evaluate may.
"""
