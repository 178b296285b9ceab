"""Graphs of jobs on a cluster. Imports no torch."""
