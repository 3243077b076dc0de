"""How do runs, evaluations, traces and comparisons become one page for people?

    read -> learning -> *_sections -> sections.Report -> page (HTML) and markdown

Invariant: what is said is said once, in a `sections.Report`; the two renderers add nothing and leave nothing out.
"""
