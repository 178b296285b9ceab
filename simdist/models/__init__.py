"""Greedy modules, their losses, and the import of upstream's checkpoints. Knows no trainer."""
