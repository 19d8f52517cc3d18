"""TIFF files as microscopes, satellites, ImageJ and OME write them."""

import io
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from conftest import GREY, RGB, pil
from PIL import Image

from unet.imaging import ImageError, Metadata, Picture, measure, read, write_tiff

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
def test_the_planes_of_a_stack_are_its_pages(kind: dict[str, Any], compression: str | None) -> None:
    data = described(STACK, metadata={"axes": "ZCYX"}, compression=compression, **kind)
    picture = read(data)
    assert picture.axes == "IYX"
    np.testing.assert_array_equal(picture.pixels, STACK.reshape(6, *GREY.shape))
    assert measure(data) == 6 * GREY.size


def test_an_imagej_stack_in_one_directory_is_refused_instead_of_losing_planes() -> None:
    """As ImageJ writes more than 4 GB."""
    data = bytearray(described(STACK[:, 0], imagej=True, metadata={"axes": "ZYX"}))
    first = tifffile.TiffFile(io.BytesIO(data)).pages[0]
    after = first.offset + 2 + 12 * len(first.tags)
    data[after : after + 4] = bytes(4)  # no further directory
    with pytest.raises(ImageError, match="expected 3 pages, as ImageJ's description says, found 1"):
        read(bytes(data))


@pytest.mark.parametrize("description", ["ImageJ=1.53\nimages=many\n", '{"shape": [9, 10, 12]}', "OME>", "?"])
def test_a_damaged_description_is_ignored(description: str) -> None:
    data = tiff(GREY, description=description)
    np.testing.assert_array_equal(only(data), GREY)


def test_a_second_description_is_ignored() -> None:
    """As Micro-Manager writes it."""
    again = (270, "s", 0, "something else", True)
    np.testing.assert_array_equal(only(tiff(GREY, description="one", extratags=[again])), GREY)


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
    ("number", "name"), [(34712, "JPEG2000"), (50002, "JPEGXL"), (34887, "LERC"), (6, "OJPEG"), (12345, "12345")]
)
def test_other_compressions_are_refused_by_name(number: int, name: str) -> None:
    data = bytearray(tiff(GREY, compression="lzw"))
    at = tifffile.TiffFile(io.BytesIO(data)).pages[0].tags[259].valueoffset
    data[at : at + 2] = number.to_bytes(2, "little")
    with pytest.raises(ImageError, match=rf"this kind of TIFF is not read .*compression {name}\)"):
        read(bytes(data))


@pytest.mark.parametrize("mode", ["LAB", "CMYK"])
def test_other_colours_are_refused(mode: str) -> None:
    with pytest.raises(ImageError, match=r"\(. x (CIELAB|SEPARATED) of 8 bits"):
        read(pil(Image.new(mode, (8, 8)), "TIFF"))


def test_ycbcr_without_jpeg_is_refused() -> None:
    data = bytearray(tiff(RGB, photometric="rgb", extratags=[(530, "H", 2, (1, 1), True)]))
    data[tifffile.TiffFile(io.BytesIO(data)).pages[0].tags[262].valueoffset] = 6
    with pytest.raises(ImageError, match="3 x YCBCR of 8 bits"):
        read(bytes(data))


def test_a_volume_in_one_directory_is_refused_instead_of_losing_planes() -> None:
    with pytest.raises(ImageError, match="this kind of TIFF is not read"):
        read(tiff(STACK[:, 0], volumetric=True, tile=(16, 16, 16), photometric="minisblack"))


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
            described(STACK[:, 0], imagej=True, resolution=(4, 4), metadata={"unit": "um", "spacing": 0.5}),
            Metadata((4, 4), "um", 0.5),
        ),
    ],
    ids=["inch", "cm", "no unit", "ImageJ"],
)
def test_metadata(data: bytes, expected: Metadata) -> None:
    assert read(data).metadata == expected


@pytest.mark.parametrize(
    "metadata",
    [
        Metadata((300, 150), "inch"),
        Metadata((4, 2), "cm"),
        Metadata((4, 4), "µm", 0.5),
        Metadata((4, 4), "mm", 1.0),
        Metadata(),
    ],
    ids=str,
)
def test_writing_carries_resolution_and_calibration_over(metadata: Metadata) -> None:
    like = Picture([GREY, GREY], "ZYX", metadata)
    again = read(write_tiff([GREY, 255 - GREY], like=like))
    assert again.metadata == metadata
    np.testing.assert_array_equal(again.pixels, [GREY, 255 - GREY])


@pytest.mark.parametrize("spacing", ["1e-99", "0.0", "nan", "what", "-0.25"])
def test_invalid_numbers_in_the_metadata_are_ignored(spacing: str) -> None:
    description = f"ImageJ=1.53\nunit=um\nspacing={spacing}\n"
    picture = read(tiff(GREY, GREY, description=description, resolution=(0, 4)))
    assert (picture.metadata.resolution, picture.metadata.spacing) == (None, None)
    assert len(read(write_tiff([GREY, GREY], like=picture)).pages) == 2
