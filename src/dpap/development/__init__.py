"""One development step as a pipeline: observe, sum up the window, score, decide, commit, report."""
