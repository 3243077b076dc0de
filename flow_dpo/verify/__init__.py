"""Was it right? An answer is extracted, compared with the gold answer in killable worker processes, and graded.

May import core.
"""
