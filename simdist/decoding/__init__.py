"""Decoders of frozen encoders: what is asked for, how they are trained, and how good they are."""
