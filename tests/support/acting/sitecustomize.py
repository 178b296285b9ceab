"""On PYTHONPATH of a process: it has a command `simdist.act`, which does what a test wants a job to do."""

from __future__ import annotations

from pathlib import Path

import simdist

simdist.__path__.append(str(Path(__file__).parent))
