"""TIFF files as microscopes, satellites, ImageJ and OME write them."""

import io
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from conftest import GREY, RGB, pil
from PIL import Image

from unet.imaging import (
    ImageError,
    ImageTooLargeError,
    Limits,
    Metadata,
    NoSuchPageError,
    Picture,
    measure,
    read,
    write_tiff,
)

UM = {"unit": "um", "spacing": 0.5}
STACK = np.stack([GREY + i for i in range(6)]).reshape(3, 2, *GREY.shape)


def tiff(*pages: np.ndarray, **options: Any) -> bytes:
    """Plain pages, without a description."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for page in pages:
            writer.write(page, metadata=None, **options)
    return file.getvalue()


def described(stack: np.ndarray, **options: Any) -> bytes:
    """A stack with ImageJ's, OME's or tifffile's own description."""
    file = io.BytesIO()
    tifffile.imwrite(file, stack, photometric="minisblack", **options)
    return file.getvalue()


def only(data: bytes, *, as_stored: bool = False) -> np.ndarray:
    (page,) = read(data, as_stored=as_stored).pages
    return page


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits", "lzma", "zstd"])
@pytest.mark.parametrize("layout", [{}, {"rowsperstrip": 3}, {"tile": (16, 16)}], ids=["one strip", "strips", "tiles"])
@pytest.mark.parametrize(
    "dtype", [np.uint8, np.uint16, np.uint32, np.int8, np.int16, np.float16, np.float32, np.float64]
)
def test_compressions_layouts_and_types(compression: str | None, layout: dict[str, Any], dtype: type) -> None:
    page = only(tiff(GREY.astype(dtype), compression=compression, **layout))
    assert page.dtype == dtype
    np.testing.assert_array_equal(page, GREY.astype(dtype))


@pytest.mark.parametrize(
    "options", [{"byteorder": ">"}, {"bigtiff": True}, {"bigtiff": True, "byteorder": ">"}], ids=str
)
def test_byte_orders_and_bigtiff(options: dict[str, Any]) -> None:
    deep = RGB.astype(np.uint16) * 257
    page = only(described(deep[..., 0], metadata=None, **options))
    assert page.dtype == np.dtype("=u2")
    np.testing.assert_array_equal(page, deep[..., 0])


@pytest.mark.parametrize("image", [RGB.astype(np.uint16) * 99, RGB.astype(np.float32) / 7], ids=["integers", "floats"])
def test_predictors(image: np.ndarray) -> None:
    np.testing.assert_array_equal(only(tiff(image, compression="zlib", predictor=True, photometric="rgb")), image)


@pytest.mark.parametrize("compression", ["group3", "group4"])
def test_fax(compression: str) -> None:
    page = only(pil(Image.fromarray(GREY > 100), "TIFF", compression=compression))
    np.testing.assert_array_equal(page, np.where(GREY > 100, 255, 0))


@pytest.mark.parametrize("compression", ["jpeg", "webp"])
@pytest.mark.parametrize("layout", [{}, {"tile": (64, 64)}], ids=["strips", "tiles"])
def test_lossy_compressions(compression: str, layout: dict[str, Any]) -> None:
    smooth = cv2.resize(RGB, (120, 100), interpolation=cv2.INTER_CUBIC)
    page = only(tiff(smooth, compression=compression, photometric="rgb", **layout))
    assert np.abs(page.astype(int) - smooth).mean() < 3


def test_jpeg_with_tables_of_its_own() -> None:
    smooth = cv2.resize(RGB, (120, 100), interpolation=cv2.INTER_CUBIC)
    data = pil(Image.fromarray(smooth), "TIFF", compression="jpeg", quality=95)
    assert 347 in tifffile.TiffFile(io.BytesIO(data)).pages[0].tags
    assert np.abs(only(data).astype(int) - smooth).mean() < 5


def test_jpeg_with_subsampled_colours() -> None:
    smooth = cv2.resize(RGB, (120, 100), interpolation=cv2.INTER_CUBIC)
    ycbcr = cv2.cvtColor(smooth, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    page = only(tiff(ycbcr, compression="jpeg", photometric="ycbcr", subsampling=(2, 2)))
    assert np.abs(page.astype(int) - smooth).mean() < 5


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_planes_are_put_together(dtype: type) -> None:
    planes = np.moveaxis(RGB, 2, 0).astype(dtype)
    np.testing.assert_array_equal(only(tiff(planes, photometric="rgb", planarconfig="separate")), RGB.astype(dtype))


def test_orientation_of_tiles(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (30, 50), dtype=np.uint8)
    for orientation, upright in {2: image[:, ::-1], 5: image.T, 7: image.T[::-1, ::-1], 8: np.rot90(image)}.items():
        data = tiff(image, tile=(16, 16), extratags=[(274, "H", 1, orientation, True)])
        np.testing.assert_array_equal(only(data), upright)


@pytest.mark.parametrize(
    ("stored", "seen"),
    [(GREY > 100, np.where(GREY > 100, 0, 255)), (GREY, 255 - GREY), (GREY.astype(np.uint16) * 9, 65535 - GREY * 9.0)],
    ids=["1", "8", "16"],
)
def test_white_is_zero_is_turned_round_for_images_but_not_for_labels(stored: np.ndarray, seen: np.ndarray) -> None:
    data = tiff(stored, photometric="miniswhite")
    np.testing.assert_array_equal(only(data), seen)
    np.testing.assert_array_equal(only(data, as_stored=True), stored * (255 if stored.dtype == bool else 1))


def test_four_bits_are_scaled_to_eight_for_images_but_not_for_labels() -> None:
    packed = (np.arange(16, dtype=np.uint8)[::2] << 4) | np.arange(16, dtype=np.uint8)[1::2]  # 0 to 15 in 8 bytes
    data = bytearray(tiff(packed[None], photometric="minisblack"))
    page = tifffile.TiffFile(io.BytesIO(data)).pages[0]
    for tag, value in ((256, 16), (258, 4)):  # width, bits
        data[page.tags[tag].valueoffset] = value
    np.testing.assert_array_equal(only(bytes(data)), [np.arange(16) * 17])
    np.testing.assert_array_equal(only(bytes(data), as_stored=True), [np.arange(16)])


def test_twelve_bits_stay_as_they_are() -> None:
    image = GREY.astype(np.uint16) * 17
    page = only(tiff(image, bitspersample=12))
    assert page.dtype == np.uint16
    np.testing.assert_array_equal(page, image)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha", "unspecified"])
def test_alpha_is_dropped_and_other_samples_are_channels(dtype: type, kind: str) -> None:
    """Near infrared in the place of alpha must not change the colours."""
    four = np.dstack([RGB, np.zeros_like(GREY)]).astype(dtype)
    expected = four if kind == "unspecified" else four[..., :3]
    np.testing.assert_array_equal(only(tiff(four, photometric="rgb", extrasamples=[kind])), expected)


def test_grey_with_alpha_is_grey() -> None:
    np.testing.assert_array_equal(only(pil(Image.fromarray(GREY).convert("LA"), "TIFF")), GREY)


@pytest.mark.parametrize("n_bands", [2, 5])
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_bands_are_channels(n_bands: int, planes: Any) -> None:
    bands = np.dstack([GREY + i for i in range(n_bands)]).astype(np.uint16)
    stored = bands if planes == "contig" else np.moveaxis(bands, 2, 0)
    np.testing.assert_array_equal(only(tiff(stored, photometric="minisblack", planarconfig=planes)), bands)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("kind", [{"imagej": True}, {"ome": True}, {}], ids=["ImageJ", "OME", "tifffile"])
def test_z_and_t_are_pages_and_c_are_channels(kind: dict[str, Any], compression: str | None) -> None:
    data = described(STACK, metadata={"axes": "ZCYX"}, compression=compression, **kind)
    picture = read(data, Limits(max_pages=6))
    assert (picture.axes, picture.metadata.stack) == ("ZCYX", {"Z": 3})
    np.testing.assert_array_equal(picture.pixels, np.moveaxis(STACK, 1, -1))
    assert measure(data) == 3 * GREY.size
    times = read(described(STACK, metadata={"axes": "TZYX"}, compression=compression, **kind))
    assert (times.axes, times.metadata.stack) == ("TZYX", {"T": 3, "Z": 2})
    np.testing.assert_array_equal(times.pixels, STACK.reshape(6, *GREY.shape))


@pytest.mark.parametrize("order", ["TZCYX", "TCZYX", "CTZYX", "ZTCYX", "ZCTYX", "CZTYX"])
def test_orders_of_ome(order: str) -> None:
    stack = np.arange(2 * 3 * 4).reshape(2, 3, 4, 1, 1).astype(np.uint8) + GREY  # the first three axes of `order`
    picture = read(described(stack, ome=True, metadata={"axes": order}))
    expected = np.moveaxis(stack, order.index("C"), -1)
    np.testing.assert_array_equal(picture.pixels, expected.reshape(-1, *expected.shape[2:]))
    assert list(picture.metadata.stack) == [axis for axis in order if axis in "TZ"]


def test_several_images_in_an_ome_file_are_pages() -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file, ome=True) as writer:
        for n in (2, 3):
            writer.write(STACK.reshape(6, *GREY.shape)[:n], photometric="minisblack", metadata={"axes": "CYX"})
    assert [page.shape for page in read(file.getvalue()).pages] == [(10, 12, 2), (10, 12, 3)]


@pytest.mark.parametrize("kind", [{"imagej": True}, {"ome": True}, {}], ids=["ImageJ", "OME", "tifffile"])
def test_a_stack_of_colours(kind: dict[str, Any]) -> None:
    file, stack = io.BytesIO(), np.stack([RGB, 255 - RGB])
    tifffile.imwrite(file, stack, photometric="rgb", metadata={"axes": "TYXS"}, **kind)
    picture = read(file.getvalue())
    np.testing.assert_array_equal(picture.pixels, stack)
    assert picture.metadata.stack == {"T": 2}


def test_two_axes_of_one_name() -> None:
    picture = read(described(STACK, metadata={"axes": "QQYX"}))
    np.testing.assert_array_equal(picture.pixels, STACK.reshape(6, *GREY.shape))
    assert picture.metadata.stack == {}


def in_one_directory(stack: np.ndarray, axes: str) -> bytes:
    """A hyperstack as ImageJ writes more than 4 GB."""
    data = bytearray(described(stack, imagej=True, metadata={"axes": axes}))
    first = tifffile.TiffFile(io.BytesIO(data)).pages[0]
    after = first.offset + 2 + 12 * len(first.tags)
    data[after : after + 4] = bytes(4)  # no further directory
    return bytes(data)


def test_an_imagej_hyperstack_in_one_directory_has_all_its_pages() -> None:
    data = in_one_directory(STACK, "ZCYX")
    picture = read(data)
    np.testing.assert_array_equal(picture.pixels, np.moveaxis(STACK, 1, -1))
    with pytest.raises(ImageTooLargeError, match=r"at most 2 pages \(--max-pages\), found 3"):
        measure(data, Limits(max_pages=2))
    with pytest.raises(ImageTooLargeError, match="at most 359 pixels"):
        measure(data, Limits(max_pixels=3 * GREY.size - 1))


def test_an_imagej_stack_that_lost_its_end_is_refused_instead_of_losing_planes() -> None:
    with pytest.raises(ImageError, match="expected 6 images, as ImageJ's description says, found 1"):
        read(in_one_directory(STACK, "ZCYX")[: 8 + STACK.nbytes])


def test_micro_managers_second_description_and_tifffiles() -> None:
    """The description of the axes is the second one if the user gave a text."""
    stack = STACK.astype(np.uint16)
    data = described(stack, description="cells, 37 degrees", metadata={"axes": "ZCYX"})
    assert [tag.code for tag in tifffile.TiffFile(io.BytesIO(data)).pages[0].tags].count(270) == 2
    np.testing.assert_array_equal(read(data).pixels, np.moveaxis(stack, 1, -1))
    imagej = (270, "s", 0, "ImageJ=1.53\nimages=6\nchannels=2\nslices=3\nhyperstack=true\n", True)
    data = tiff(*stack.reshape(6, *GREY.shape), extratags=[(270, "s", 0, "cells", True), imagej])
    assert [tag.code for tag in tifffile.TiffFile(io.BytesIO(data)).pages[0].tags].count(270) == 2
    np.testing.assert_array_equal(read(data).pixels, np.moveaxis(stack, 1, -1))


@pytest.mark.parametrize("repeated", [(306, "s", 0, "2026:01:01 00:00:00", True), (270, "s", 0, "again", True)])
def test_repeated_tags_are_nobodys_business(repeated: tuple[Any, ...]) -> None:
    deep = GREY.astype(np.uint16) * 9
    np.testing.assert_array_equal(only(tiff(deep, extratags=[repeated, repeated])), deep)


@pytest.mark.parametrize("description", ["ImageJ=1.53\nimages=many\n", '{"shape": [9, 10, 12]}', "OME>", "?"])
def test_a_damaged_description_is_ignored(description: str) -> None:
    data = tiff(GREY, description=description)
    np.testing.assert_array_equal(only(data), GREY)


def test_ome_never_opens_another_file(tmp_path: Any) -> None:
    (tmp_path / "secret.ome.tif").write_bytes(tiff(GREY))
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1"><Image ID="I"><Pixels ID="P" '
        'DimensionOrder="XYZCT" Type="uint8" SizeX="12" SizeY="10" SizeZ="1" SizeC="1" SizeT="1"><TiffData IFD="0">'
        f'<UUID FileName="{tmp_path}/secret.ome.tif">urn:uuid:2</UUID></TiffData></Pixels></Image></OME>'
    )
    data = tiff(255 - GREY, description=xml)
    (tmp_path / "a.ome.tif").write_bytes(data)
    for source in (data, tmp_path / "a.ome.tif"):
        np.testing.assert_array_equal(read(source).pixels, 255 - GREY)


@pytest.mark.parametrize(
    ("data", "alone"),
    [
        *[
            (described(STACK, metadata={"axes": axes}, **kind, **packed), True)
            for kind in ({"imagej": True}, {"ome": True}, {})
            for packed in ({}, {"compression": "zlib"})
            for axes in ("ZCYX", "TZYX", "CZYX", "CTYX")
            if axes[0] != "C" or "imagej" not in kind
        ],
        *[(in_one_directory(STACK, axes), True) for axes in ("ZCYX", "TZYX")],
        (described(STACK, metadata={"axes": "QQYX"}), True),
        (tiff(GREY, GREY[:5], RGB, photometric="minisblack"), True),
        (tiff(GREY), True),
        (tiff(STACK[:, 0], volumetric=True, tile=(16, 16, 16), photometric="minisblack"), False),
    ],
)
def test_one_page_is_read_alone(data: bytes, alone: bool) -> None:
    """Its pixels and what is said of them are those of the page among all. `alone`: the others are not decoded."""
    picture = read(data)
    for number, page in enumerate(picture.pages, 1):
        one = read(data, page=number)
        np.testing.assert_array_equal(one.pixels, page)
        assert (one.pixels.dtype, one.axes, one.metadata) == (page.dtype, picture.axes, picture.metadata)
        assert (one.part, one.tiff) == ((number, len(picture.pages)), False)
    n_pixels = [measure(data, page=i) for i in range(1, len(picture.pages) + 1)]
    assert sum(n_pixels) == measure(data) * (1 if alone else len(picture.pages))
    with pytest.raises(NoSuchPageError, match=rf"page: expected 1.*, found {len(picture.pages) + 1}$"):
        read(data, page=len(picture.pages) + 1)


def test_the_file_of_another_kind_has_one_page() -> None:
    for kind in ("PNG", "GIF", "BMP", "JPEG"):
        data = pil(Image.fromarray(GREY), kind)
        assert read(data, page=1).part == (1, 1)
        with pytest.raises(NoSuchPageError, match="page: expected 1, found 2"):
            measure(data, page=2)


def test_pages_may_differ_in_size() -> None:
    pages = [GREY, GREY[:5], GREY[:, :7]]
    picture = read(write_tiff(pages))
    assert picture.axes == "IYX"
    for page, expected in zip(picture.pages, pages, strict=True):
        np.testing.assert_array_equal(page, expected)


def test_overviews_thumbnails_masks_and_sub_directories_are_not_pages() -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(GREY, metadata=None, subifds=1)
        writer.write(GREY[::2, ::2], metadata=None, subfiletype=1)
        writer.write(GREY[::2, ::2], metadata=None, subfiletype=1)
        writer.write(GREY > 9, metadata=None, subfiletype=4)
    np.testing.assert_array_equal(only(file.getvalue()), GREY)


def test_a_slide_of_aperio_is_its_baseline() -> None:
    file, large = io.BytesIO(), np.tile(RGB, (8, 8, 1))
    with tifffile.TiffWriter(file) as writer:
        options: dict[str, Any] = {"metadata": None, "photometric": "rgb"}
        writer.write(large, tile=(16, 16), description="Aperio Image Library v11.2.1\n96x80", **options)
        writer.write(RGB, description="Aperio Image Library v11.2.1\n96x80 -> 12x10", **options)  # thumbnail
    np.testing.assert_array_equal(only(file.getvalue()), large)


@pytest.mark.parametrize(
    ("number", "name"), [(50002, "JPEGXL"), (34887, "LERC"), (6, "OJPEG"), (22610, "JPEGXR_NDPI"), (12345, "12345")]
)
def test_other_compressions_are_refused_by_name(number: int, name: str) -> None:
    data = bytearray(tiff(GREY, compression="lzw"))
    at = tifffile.TiffFile(io.BytesIO(data)).pages[0].tags[259].valueoffset
    data[at : at + 2] = number.to_bytes(2, "little")
    with pytest.raises(ImageError, match=f"compression {name} is not read: save it with deflate, LZW or ZSTD"):
        read(bytes(data))


def test_cmyk_becomes_rgb() -> None:
    image = Image.fromarray(RGB).convert("CMYK")
    page = only(pil(image, "TIFF"))
    assert np.abs(page.astype(int) - RGB).max() <= 1
    np.testing.assert_array_equal(only(pil(image, "TIFF"), as_stored=True), np.asarray(image))


def test_colours_of_cielab_are_refused_by_name() -> None:
    with pytest.raises(ImageError, match="found 3 x CIELAB"):
        read(pil(Image.new("LAB", (8, 8)), "TIFF"))


def test_complex_numbers_are_refused_by_name() -> None:
    with pytest.raises(ImageError, match="found 64 bits of COMPLEXIEEEFP"):
        read(tiff(GREY.astype(np.complex64)))


def test_ycbcr_without_jpeg_is_refused_by_name() -> None:
    data = bytearray(tiff(RGB, photometric="rgb", extratags=[(530, "H", 2, (1, 1), True)]))
    data[tifffile.TiffFile(io.BytesIO(data)).pages[0].tags[262].valueoffset] = 6
    with pytest.raises(ImageError, match="found 3 x YCBCR with compression NONE"):
        read(bytes(data))


def test_a_volume_in_one_directory_has_all_its_pages() -> None:
    picture = read(tiff(STACK[:, 0], volumetric=True, tile=(16, 16, 16), photometric="minisblack"))
    np.testing.assert_array_equal(picture.pixels, STACK[:, 0])


@pytest.mark.parametrize(
    ("dtype", "text", "value"),
    [
        *[("u1", "255", 255), ("u2", "0", 0), ("i2", "-9999", -9999), ("i4", "-9999.0", -9999)],
        *[("f4", "-3.4028234663852886e+38", np.finfo("f4").min), ("f8", "nan", np.nan), ("f4", "0.1", 0.1)],
    ],
)
def test_gdals_value_for_no_data_is_nan_in_images(dtype: str, text: str, value: float) -> None:
    image = np.clip(GREY.astype(dtype), 1, 99)
    image[2:4, 3:] = value
    data = tiff(image, extratags=[(42113, "s", 0, text, True)])
    page = only(data)
    assert page.dtype == (np.float32 if text != "nan" else np.float64)
    assert np.argwhere(np.isnan(page)).tolist() == [[y, x] for y in (2, 3) for x in range(3, 12)]
    top = np.iinfo(dtype).max if dtype[0] in "iu" else 1
    np.testing.assert_allclose(page[:2], (image / top)[:2], rtol=1e-6)
    np.testing.assert_array_equal(only(data, as_stored=True), image)


@pytest.mark.parametrize("text", ["-9999", "1e99", "nan", "none", "", "0.5"])
def test_a_value_for_no_data_that_no_pixel_has_changes_nothing(text: str) -> None:
    np.testing.assert_array_equal(only(tiff(GREY, extratags=[(42113, "s", 0, text, True)])), GREY)


def test_no_data_of_colours_is_where_all_samples_have_the_value() -> None:
    colours = RGB.clip(1)
    colours[0, 0], colours[0, 1, 0] = 0, 0
    page = only(tiff(colours, photometric="rgb", extratags=[(42113, "s", 0, "0", True)]))
    assert np.argwhere(np.isnan(page)).tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2]]


def test_a_stack_of_metamorph_is_refused_instead_of_losing_planes() -> None:
    with pytest.raises(ImageError, match="MetaMorph"):
        read(tiff(GREY, extratags=[(33628, "I", 1, 0, True)]))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (tiff(GREY, resolution=(300, 300), resolutionunit="INCH"), Metadata((300, 300), "inch")),
        (tiff(GREY, resolution=(4, 2), resolutionunit="CENTIMETER"), Metadata((4, 2), "cm")),
        (tiff(GREY, resolution=(4, 2), resolutionunit="NONE"), Metadata()),
        (
            described(STACK[:, 0], imagej=True, resolution=(4, 4), metadata={"axes": "ZYX"} | UM),
            Metadata((4, 4), "um", 0.5, stack={"Z": 3}),
        ),
        (
            described(
                STACK[:, 0],
                ome=True,
                metadata={"axes": "TYX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2}
                | {"TimeIncrement": 1.5},
            ),
            Metadata((4, 2), "µm", 2.0, interval=1.5, stack={"T": 3}),
        ),
        (
            described(
                STACK[:, 0],
                ome=True,
                metadata={"axes": "TYX", "PhysicalSizeX": 250.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.5}
                | {"PhysicalSizeZ": 0.002, "PhysicalSizeZUnit": "mm", "TimeIncrement": 1500, "TimeIncrementUnit": "ms"},
            ),
            Metadata((4, 2), "µm", 2.0, interval=1.5, stack={"T": 3}),
        ),
        (
            described(GREY, ome=True, metadata={"PhysicalSizeX": 1.0, "PhysicalSizeXUnit": "pixel"}),
            Metadata(),
        ),
        (tiff(GREY, GREY, extratags=[(285, "s", 0, "DAPI", True)]), Metadata(names=("DAPI", "DAPI"))),
    ],
    ids=["inch", "cm", "no unit", "ImageJ", "OME", "OME in other units", "OME without", "names"],
)
def test_metadata(data: bytes, expected: Metadata) -> None:
    assert read(data).metadata == expected


@pytest.mark.parametrize(
    "metadata",
    [
        Metadata((300, 150), "inch"),
        Metadata((4, 2), "cm"),
        Metadata((4, 4), "µm", 0.5, stack={"Z": 2}),
        Metadata((4, 4), "mm", 1.0, interval=2.5, stack={"T": 2}),
        Metadata(None, "", 1.0, stack={"Z": 2}, names=("a", "zweite Ebene")),
        Metadata((300, 150), "inch", names=("a", "b")),
        Metadata(),
    ],
    ids=str,
)
def test_writing_carries_resolution_and_calibration_over(metadata: Metadata) -> None:
    like = Picture([GREY, GREY], "ZYX", metadata)
    again = read(write_tiff([GREY, 255 - GREY], like=like))
    assert again.metadata == metadata
    assert again.axes == ("".join(metadata.stack) or "I") + "YX"
    np.testing.assert_array_equal(again.pixels, [GREY, 255 - GREY])


def test_a_hyperstack_stays_one() -> None:
    stack = np.stack([GREY] * 12).reshape(2, 3, 2, *GREY.shape)
    labels = [f"slice {i}" for i in range(12)]
    options: dict[str, Any] = {"spacing": 0.5, "unit": "um", "finterval": 3.0, "Labels": labels}
    picture = read(described(stack, imagej=True, resolution=(4, 4), metadata={"axes": "TZCYX", **options}))
    assert [page.shape for page in picture.pages] == [(10, 12, 2)] * 6
    masks = [np.full_like(GREY, i) for i in range(6)]
    written = tifffile.TiffFile(io.BytesIO(write_tiff(masks, like=picture)))
    assert written.series[0].axes == "TZYX"
    assert written.asarray()[:, :, 0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    expected = {"frames": 2, "slices": 3, "spacing": 0.5, "unit": "um", "finterval": 3.0, "Labels": labels[::2]}
    assert {key: written.imagej_metadata[key] for key in expected} == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int32, np.float32, np.float64])
def test_every_type_keeps_its_calibration(dtype: type) -> None:
    """tifffile's own ImageJ files are of fewer types, but ImageJ reads these."""
    like = Picture([], "TYX", Metadata((4, 2), "um", 0.5, stack={"T": 2}))
    picture = read(write_tiff([GREY.astype(dtype)] * 2, like=like))
    assert picture.pages[1].dtype == dtype
    assert picture.metadata == like.metadata


def test_pages_of_different_sizes_keep_the_size_of_their_pixels() -> None:
    picture = read(write_tiff([GREY, GREY[:5]], like=Picture([], "IYX", Metadata((0.004, 0.002), "nm"))))
    assert picture.metadata.unit == "cm"
    assert picture.metadata.micrometres == pytest.approx((0.25, 0.5))


@pytest.mark.parametrize("spacing", ["1e-99", "0.0", "nan", "what", "-0.25"])
def test_invalid_numbers_in_the_metadata_are_ignored(spacing: str) -> None:
    description = f"ImageJ=1.53\nunit=um\nspacing={spacing}\n"
    picture = read(tiff(GREY, GREY, description=description, resolution=(0, 4)))
    assert (picture.metadata.resolution, picture.metadata.spacing) == (None, None)
    assert len(read(write_tiff([GREY, GREY], like=picture)).pages) == 2
