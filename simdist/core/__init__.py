"""For every room: errors, files, signals, console, progress, random streams, SLURM. No torch, no configuration."""
