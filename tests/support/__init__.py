"""What several test files share: small corpora, trained runs, web servers, a view of the SLURM testbed."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The repository."""
