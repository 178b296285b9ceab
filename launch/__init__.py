"""Sweeps: a YAML file becomes a graph of jobs, on SLURM, on this machine or in this process. Imports no torch."""
