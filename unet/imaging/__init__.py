"""Image files: bytes or a path -> `Picture`, and back. Imports no torch.

>>> picture = imaging.read("cell.tif")
>>> picture.pages[0].shape, picture.axes, picture.metadata.resolution
"""

from unet.imaging.picture import Array, ImageError, ImageTooLargeError, Limits, Metadata, NoSuchPageError, Picture
from unet.imaging.reader import SUFFIXES, measure, read
from unet.imaging.writer import write_png, write_tiff

__all__ = [
    "SUFFIXES", "Array", "ImageError", "ImageTooLargeError", "Limits", "Metadata", "NoSuchPageError", "Picture",
    "measure", "read", "write_png", "write_tiff",
]  # fmt: skip
