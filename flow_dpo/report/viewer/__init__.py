"""What is in a run, tree by tree? A local page on runs, traces, evaluations and judgements, or the same as files.

    found -> index -> library -> server (or export) -> assets

May import what `report`, its parent package, may import.
"""
