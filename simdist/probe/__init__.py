"""`python -m simdist.probe`: classifiers on the features of each greedy module."""
