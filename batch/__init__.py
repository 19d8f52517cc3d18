"""`unet-segment`: many files in, their answers out. Empty until that program exists."""
