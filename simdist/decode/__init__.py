"""`python -m simdist.decode`: decoders from one greedy module back to the waveform."""
