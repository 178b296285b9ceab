"""`python -m simdist.analyze`: analyses of the latents of each greedy module."""
