"""`python -m simdist.import_reference`: a run that starts from a checkpoint of the reference implementation."""
