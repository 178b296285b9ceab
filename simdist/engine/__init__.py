"""Where training happens: the one Accelerator, the step, checkpoints, signals, metrics. Knows no corpus layout."""
