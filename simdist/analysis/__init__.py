"""Post-hoc analyses of a trained encoder: one file an analysis, its plots beside it."""
