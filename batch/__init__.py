"""`unet-segment`: many files in, their answers out. Importing it loads no torch."""
