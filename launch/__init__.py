"""Sweeps: a YAML file becomes a graph of jobs, on SLURM, on this machine or in this process. Imports no torch.

The package is `launch` in a clone, where its four commands are scripts, and `simdist.launch` in a wheel.
"""
