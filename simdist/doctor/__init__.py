"""`python -m simdist.doctor`: checks of a machine, a corpus and a cluster."""
