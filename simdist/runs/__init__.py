"""The run folder: what lies in it, its schedule, metrics, events and lease. No torch."""
