"""What a SLURM cluster says of itself, and the profile that follows from it. Imports no torch.

`parsing` reads the output of SLURM's commands, `discovery` runs them, `offers` tells what each partition gives to
the user, `suggestion` makes a profile of that, `choice` decides between that, a named profile and the user's default,
`description` puts it into words, and `profile_text` writes the result as YAML.
"""
