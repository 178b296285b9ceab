"""Sweeps: a YAML file becomes a graph of jobs, on SLURM, on this machine or in this process. Imports no torch.

The package is `launch` in a clone, where its four commands are scripts, and `simdist.launch` in a wheel.

- Commands: `sweep` (with `options`, `dry_run`, `estimate`), `status` (with `overview`), `logs`, `cancel`.
- A sweep: `sweep_file` → `variants` → `plan` (jobs and parents); `records` (submissions) → `states` (done, running, …).
- Running it: `local` on this machine; `submit` → `scheduler` (the interface) → `slurm` with `batch_scripts`, from a
  `snapshot` of the code. Inside a job: `job`, then `endings`.
"""
