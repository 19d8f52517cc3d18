"""Image files: bytes or a path -> `Picture`, and back. Imports no torch."""
