"""Probes: how well a simple classifier reads a label off what each greedy module says."""
