"""What a folder of runs adds up to: one number a run, then mean and standard deviation over seeds. Imports no torch."""
