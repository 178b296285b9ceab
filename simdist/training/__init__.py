"""The training loop and step, distributed engines, checkpoints and recovery, whatever is trained."""
