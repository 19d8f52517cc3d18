"""Output kinds: probabilities and the uploaded picture -> bytes and their media type. Imports no torch."""
