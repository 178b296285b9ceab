"""The experiment and the decoder as trees of dataclasses, and their YAML files and command lines. No torch."""
