"""Reading: limits first, from headers; then pixels."""

from pathlib import Path

from unet.imaging.picture import ImageError, ImageTooLargeError, Limits, Picture
from unet.imaging.raster import RasterFile
from unet.imaging.tiff import MAGIC, TiffImage

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")
MAX_SIDE = 1_000_000  # pixels: the limit of libpng, which writes answers; OpenCV's is 2**20
UNLIMITED = Limits()


def measure(data: bytes, limits: Limits = UNLIMITED) -> int:
    """Number of pixels that decoding takes memory for, all pages together, from headers alone.

    Raises ImageTooLargeError, or ImageError for what is not an image.
    """
    return _opened(data, limits)[1]


def read(source: bytes | str | Path, limits: Limits = UNLIMITED, *, as_stored: bool = False) -> Picture:
    """The picture in a file, or in its bytes. Raises ImageTooLargeError, ImageError, OSError.

    Pages are (H, W) grey, (H, W, 3) RGB or (H, W, C), integers and floats as in the file; 1 bit becomes 0 and 255,
    alpha is dropped, the orientation is applied, of an animation the first picture counts. Palettes are looked up, and
    black is 0; `as_stored`, for labels: indices of the palette, and samples as they are.
    """
    if not isinstance(source, bytes):
        with Path(source).open("rb") as file:
            source = file.read(-1 if limits.max_bytes is None else limits.max_bytes + 1)
    image, _ = _opened(source, limits)
    if isinstance(image, TiffImage):
        return Picture(image.decode(as_stored), image.axes, image.metadata())
    page = image.decode(as_stored)
    return Picture([page], "YXS"[: page.ndim])


def _opened(data: bytes, limits: Limits) -> tuple[TiffImage | RasterFile, int]:
    """The image, not decoded yet, and its number of pixels, which are within the limits."""
    if not data:
        raise ImageError("expected an image, found nothing (0 bytes)")
    if limits.max_bytes is not None and len(data) > limits.max_bytes:
        raise ImageTooLargeError(f"expected at most {limits.max_bytes} bytes (--max-bytes), found more")
    image = TiffImage(data, limits.max_pages) if data.startswith(MAGIC) else RasterFile(data)
    total = 0
    for n_pages, (width, height, pixels) in enumerate(image.claims(), 1):
        total += pixels
        found = f"found {width} x {height} on page {n_pages}"
        if not width or not height:
            raise ImageError(f"expected an image, found {width} x {height} pixels")
        if limits.max_pages is not None and n_pages > limits.max_pages:
            raise ImageTooLargeError(f"expected at most {limits.max_pages} pages (--max-pages), found more")
        if limits.max_pixels is not None and total > limits.max_pixels:
            raise ImageTooLargeError(f"expected at most {limits.max_pixels} pixels (--max-pixels), {found}")
        if max(width, height) > MAX_SIDE:
            raise ImageTooLargeError(f"expected sides of at most {MAX_SIDE} pixels, {found}")
    return image, total
