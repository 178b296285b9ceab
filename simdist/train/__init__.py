"""`python -m simdist.train`: train an encoder."""
