"""What are people told? Runs, evaluations, traces, judges and comparisons as one HTML page.

May import every room but `cli`: sources -> rates -> *_section -> document.Report -> html.
"""
