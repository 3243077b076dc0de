"""Verification: final answers are extracted, compared with the gold ones in killable worker processes, and graded.

May import core.
"""
