"""Corpora, shards, the order of samples, crops and loaders. Never calls torch.distributed and knows no model."""
