"""What a SLURM cluster says of itself, and the profile that follows from it. Imports no torch.

`parsing` reads the output of SLURM's commands, `discovery` runs them, `suggestion` makes a profile of what they say,
`choice` decides between that, a named profile and the user's default, and `profile_text` writes the result as YAML.
"""
