"""What happens after every batch besides learning? Budget, progress, warnings of collapse.

May import whatever `runs` may import.
"""
