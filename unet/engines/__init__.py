"""Engines: ways to compute a network faster than the plain module does, behind `prepare`."""
