// Curves of runs.
