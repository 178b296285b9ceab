"""`python -m simdist.report`: runs in one page and in tables."""
