"""`python -m simdist.pack`: corpora into WebDataset shards, and the synthetic corpus."""
