"""The same pixels whatever the file: a table of encodings, of which each is read as the array it was written from."""

import io
from collections.abc import Callable
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from conftest import pil, png
from PIL import Image

from unet.imaging import read

H, W = 50, 37
YY, XX = np.mgrid[:H, :W]
GREY = ((YY * 3 + XX * 2) % 250 + (YY - 25) // 9).clip(0, 255).astype(np.uint8)
RGB = np.dstack([GREY, GREY[::-1], 255 - GREY])
DEEP, DEEP_RGB = GREY.astype(np.uint16) * 200, RGB.astype(np.uint16) * 200
SIGNED = GREY.astype(np.int16) * 99 - 9999
FLOATS = (GREY / 255).astype(np.float32)
BANDS = np.dstack([GREY + i for i in range(5)])
BITS = np.where(GREY > 100, 255, 0).astype(np.uint8)
FOUR = GREY // 16  # 4 bits


def tiff(image: np.ndarray, *, big: bool = False, order: Any = "<", **options: Any) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file, bigtiff=big, byteorder=order) as writer:
        writer.write(image, metadata=None, **({"photometric": "minisblack"} | options))
    return file.getvalue()


def described(image: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, image, **({"photometric": "minisblack"} | options))
    return file.getvalue()


def planes(image: np.ndarray) -> np.ndarray:
    return np.moveaxis(image, -1, 0)


def packed(image: np.ndarray, bits: int, **options: Any) -> bytes:
    """A TIFF whose samples have so many bits, each row beginning at a byte."""
    rows = np.unpackbits(image.astype(">u2").view(np.uint8).reshape(*image.shape, 2), axis=2)[:, :, 16 - bits :]
    stored = np.packbits(rows.reshape(len(image), -1), axis=1)
    data = bytearray(tiff(stored, **options))
    order: Any = "big" if options.get("order") == ">" else "little"
    tags = tifffile.TiffFile(io.BytesIO(data)).pages[0].tags
    for tag, value in ((256, image.shape[1]), (258, bits)):
        at, size = tags[tag].valueoffset, tags[tag].valuebytecount
        data[at : at + size] = value.to_bytes(size, order)
    return bytes(data)


def palette(indices: np.ndarray, colours: np.ndarray, kind: str) -> bytes:
    image = Image.fromarray(indices, "L").convert("P")
    image.putpalette(colours.ravel().tolist())
    return pil(image, kind)


WHEEL = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
TIFF: dict[str, tuple[np.ndarray, Callable[[], bytes]]] = {
    **{
        f"tiff {name} {compression}": (image, lambda i=image, c=compression, o=options: tiff(i, compression=c, **o))
        for compression in (None, "lzw", "zlib", "packbits", "lzma", "zstd")
        for name, image, options in (
            ("grey", GREY, {}),
            ("rgb tiles", RGB, {"photometric": "rgb", "tile": (16, 16)}),
            ("deep strips", DEEP, {"rowsperstrip": 7}),
        )
    },
    **{
        f"tiff predictor {name}": (image, lambda i=image, o=options: tiff(i, compression="zlib", predictor=True, **o))
        for name, image, options in (
            ("grey", GREY, {}),
            ("deep rgb", DEEP_RGB, {"photometric": "rgb"}),
            ("signed tiles", SIGNED, {"tile": (32, 16)}),
            ("float", FLOATS, {}),
            ("half", FLOATS.astype(np.float16), {}),
            ("double", FLOATS.astype(np.float64), {"tile": (16, 16)}),
        )
    },
    **{
        f"tiff {image.dtype} {order}": (image, lambda i=image, o=order: tiff(i, order=o))
        for image in ((GREY // 2).astype(dtype) for dtype in ("i1", "i2", "u4", "i4", "u8", "f2", "f4", "f8"))
        for order in ("<", ">")
    },
    **{f"tiff {bits} bits": (DEEP >> 16 - bits, lambda b=bits: packed(DEEP >> 16 - b, b)) for bits in (10, 12, 14)},
    "tiff 12 bits lzw big-endian": (DEEP >> 4, lambda: packed(DEEP >> 4, 12, order=">", compression="lzw")),
    "tiff 4 bits": (FOUR * 17, lambda: packed(FOUR, 4)),
    "tiff 2 bits": (FOUR // 4 * 85, lambda: packed(FOUR // 4, 2)),
    "tiff 1 bit": (BITS, lambda: tiff(BITS > 0)),
    "tiff 1 bit white-is-zero": (BITS, lambda: tiff(BITS == 0, photometric="miniswhite")),
    "tiff fax": (BITS, lambda: pil(Image.fromarray(BITS > 0), "TIFF", compression="group4")),
    "tiff white-is-zero": (GREY, lambda: tiff(255 - GREY, photometric="miniswhite", compression="lzw")),
    "tiff white-is-zero deep": (DEEP, lambda: tiff(65535 - DEEP, photometric="miniswhite")),
    "tiff planes": (RGB, lambda: tiff(planes(RGB), photometric="rgb", planarconfig="separate")),
    "tiff planes, tiles": (
        DEEP_RGB,
        lambda: tiff(planes(DEEP_RGB), photometric="rgb", planarconfig="separate", tile=(16, 16), compression="zstd"),
    ),
    "tiff bands": (BANDS, lambda: tiff(BANDS, planarconfig="contig")),
    "tiff planes of bands": (BANDS, lambda: tiff(planes(BANDS), planarconfig="separate", compression="lzw")),
    "tiff two bands": (BANDS[..., :2], lambda: tiff(BANDS[..., :2], planarconfig="contig")),
    "tiff near infrared": (
        BANDS[..., :4],
        lambda: tiff(BANDS[..., :4], photometric="rgb", extrasamples=["unspecified"]),
    ),
    "tiff near infrared as alpha": (
        RGB,
        lambda: tiff(np.dstack([RGB, GREY * 0]), photometric="rgb", extrasamples=["unassalpha"]),
    ),
    "tiff deep alpha": (
        DEEP_RGB,
        lambda: tiff(np.dstack([DEEP_RGB, DEEP]), photometric="rgb", extrasamples=["assocalpha"], compression="zlib"),
    ),
    "tiff palette": (WHEEL[GREY], lambda: palette(GREY, WHEEL, "TIFF")),
    "tiff jpeg 2000": (RGB, lambda: tiff(RGB, photometric="rgb", compression="jpeg2000")),
    "tiff jpeg 2000 tiles": (DEEP, lambda: tiff(DEEP, tile=(32, 32), compression="jpeg2000")),
    "tiff lossless webp": (
        RGB,
        lambda: tiff(RGB, photometric="rgb", compression="webp", compressionargs={"lossless": 1}),
    ),
    "bigtiff": (DEEP, lambda: tiff(DEEP, big=True)),
    "bigtiff big-endian": (RGB, lambda: tiff(RGB, big=True, order=">", photometric="rgb", tile=(16, 16))),
    "tiff by imagej": (DEEP, lambda: described(DEEP, imagej=True)),
    "tiff by imagej channels": (BANDS, lambda: described(planes(BANDS), imagej=True, metadata={"axes": "CYX"})),
    "tiff by ome": (DEEP, lambda: described(DEEP, ome=True, compression="zlib")),
    "tiff by ome channels": (BANDS, lambda: described(planes(BANDS), ome=True, metadata={"axes": "CYX"})),
    "tiff by tifffile": (RGB, lambda: described(RGB, photometric="rgb", description="a text")),
    "tiff by opencv": (DEEP_RGB, lambda: png(DEEP_RGB, ".tif")),
    "tiff by pillow": (FLOATS, lambda: pil(Image.fromarray(FLOATS), "TIFF")),
}
OTHERS: dict[str, tuple[np.ndarray, Callable[[], bytes]]] = {
    "png": (GREY, lambda: png(GREY)),
    "png rgb": (RGB, lambda: pil(Image.fromarray(RGB), "PNG")),
    "png deep": (DEEP_RGB, lambda: png(DEEP_RGB)),
    "png 1 bit": (BITS, lambda: pil(Image.fromarray(BITS > 0), "PNG")),
    "png 4 bits": (FOUR * 17, lambda: imagecodecs.png_encode(FOUR * 17)),
    "png alpha": (RGB, lambda: pil(Image.fromarray(np.dstack([RGB, GREY])), "PNG")),
    "png palette": (WHEEL[GREY], lambda: palette(GREY, WHEEL, "PNG")),
    "gif": (WHEEL[GREY], lambda: palette(GREY, WHEEL, "GIF")),
    "gif grey": (GREY, lambda: pil(Image.fromarray(GREY), "GIF")),
    "bmp": (RGB, lambda: png(RGB, ".bmp")),
    "bmp palette": (WHEEL[GREY], lambda: palette(GREY, WHEEL, "BMP")),
    "webp": (RGB, lambda: pil(Image.fromarray(RGB), "WEBP", lossless=True)),
    "jp2": (RGB, lambda: pil(Image.fromarray(RGB), "JPEG2000")),
    "jp2 grey": (GREY, lambda: pil(Image.fromarray(GREY), "JPEG2000")),
    "jp2 deep": (DEEP, lambda: imagecodecs.jpeg2k_encode(DEEP, reversible=True, codecformat="jp2")),
    "jp2 alpha": (RGB, lambda: pil(Image.fromarray(np.dstack([RGB, GREY])), "JPEG2000")),
    "j2k signed": (SIGNED, lambda: imagecodecs.jpeg2k_encode(SIGNED, reversible=True, codecformat="j2k")),
    "j2k bands": (BANDS, lambda: imagecodecs.jpeg2k_encode(BANDS, reversible=True, codecformat="j2k")),
    "j2k tiles": (RGB, lambda: pil(Image.fromarray(RGB), "JPEG2000", no_jp2=True, tile_size=(32, 32))),
}
TABLE = TIFF | OTHERS


@pytest.mark.parametrize("name", TABLE)
def test_the_pixels_are_those_that_were_written(name: str) -> None:
    image, encode = TABLE[name]
    (page,) = read(encode()).pages
    assert page.dtype == image.dtype
    np.testing.assert_array_equal(page, image)


def test_the_table_is_long() -> None:
    assert len(TABLE) >= 60


STORED: dict[str, tuple[np.ndarray, Callable[[], bytes]]] = {
    **{f"{kind} palette": (FOUR, lambda k=kind: palette(FOUR, WHEEL, k)) for kind in ("PNG", "GIF", "BMP", "TIFF")},
    "bool tiff": (BITS, lambda: described(BITS > 0, photometric=None)),  # stored white-is-zero by tifffile
    "imagej's inverting lookup table": (BITS, lambda: tiff(BITS, photometric="miniswhite")),
    "white-is-zero": (DEEP, lambda: tiff(DEEP, photometric="miniswhite", compression="lzw")),
    "4 bits": (FOUR, lambda: packed(FOUR, 4)),
    "2 bits": (FOUR // 4, lambda: packed(FOUR // 4, 2)),
    "4 bits white-is-zero": (FOUR, lambda: packed(FOUR, 4, photometric="miniswhite")),
    "12 bits": (DEEP >> 4, lambda: packed(DEEP >> 4, 12)),
    "ids": (DEEP, lambda: tiff(DEEP, compression="zstd")),
    "signed": (SIGNED, lambda: tiff(SIGNED)),
    "colours": (RGB, lambda: pil(Image.fromarray(np.dstack([RGB, GREY])), "PNG")),
    "colours in a tiff": (RGB, lambda: tiff(np.dstack([RGB, GREY]), photometric="rgb", extrasamples=["unassalpha"])),
    "no data": (GREY, lambda: tiff(GREY, extratags=[(42113, "s", 0, "100", True)])),
}


@pytest.mark.parametrize("name", STORED)
def test_a_label_is_what_is_stored(name: str) -> None:
    stored, encode = STORED[name]
    (page,) = read(encode(), as_stored=True).pages
    assert page.dtype == stored.dtype
    np.testing.assert_array_equal(page, stored)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_png_of_few_bits_as_stored(bits: int) -> None:
    """No library here writes one: a PNG of 8 bits with palette indices, made grey by its header."""
    indices = FOUR >> 4 - bits
    image = Image.fromarray(indices, "L").convert("P")
    image.putpalette(WHEEL.ravel().tolist())
    data = bytearray(pil(image, "PNG", bits=bits))
    assert (data[24], data[25]) == (bits, 3)
    data[25] = 0
    data[29:33] = imagecodecs.zlib_crc32(bytes(data[12:29])).to_bytes(4)
    at = data.index(b"PLTE") - 4
    del data[at : at + 12 + int.from_bytes(data[at : at + 4])]
    np.testing.assert_array_equal(read(bytes(data)).pixels, indices * (255 // (2**bits - 1)))
    np.testing.assert_array_equal(read(bytes(data), as_stored=True).pixels, indices)


def test_a_turned_image_says_so_and_cameras_jpegs_are_upright() -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    smooth = cv2.GaussianBlur(GREY, (0, 0), 5)
    picture = read(pil(Image.fromarray(smooth), "JPEG", exif=exif, quality=98))
    assert picture.metadata.orientation == 6
    assert np.abs(picture.pixels.astype(int) - np.rot90(smooth, -1)).mean() < 2
