"""`python -m simdist.download`: LibriSpeech from the web."""
