"""Greedy modules, their losses, and the import of reference checkpoints. Knows no trainer."""
