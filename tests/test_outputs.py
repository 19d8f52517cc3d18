"""Kinds of answers: one page is a PNG, several are a TIFF with the picture's resolution."""

import io

import numpy as np
import pytest
import tifffile
from conftest import GREY

from unet.imaging import Metadata, Picture, read
from unet.outputs import KINDS, Answer

MASK = np.where(GREY > 100, 255, 0).astype(np.uint8)


@pytest.mark.parametrize("name", ["mask", "probability"])
def test_one_page_is_a_png(name: str) -> None:
    answer = KINDS[name].encode([MASK], Picture([GREY], "YX"))
    assert answer.media_type == "image/png"
    assert answer.body.startswith(b"\x89PNG")
    np.testing.assert_array_equal(read(answer.body).pixels, MASK)


@pytest.mark.parametrize("name", ["mask", "probability"])
def test_several_pages_are_a_tiff_with_the_resolution_of_the_picture(name: str) -> None:
    picture = Picture([GREY, GREY], "ZYX", Metadata((4, 4), "um", 0.5))
    answer = KINDS[name].encode([MASK, 255 - MASK], picture)
    assert answer.media_type == "image/tiff"
    again = read(answer.body)
    np.testing.assert_array_equal(again.pixels, [MASK, 255 - MASK])
    assert again.metadata == picture.metadata
    assert tifffile.TiffFile(io.BytesIO(answer.body)).imagej_metadata["unit"] == "um"


def test_pages_of_different_sizes() -> None:
    answer = KINDS["mask"].encode([MASK, MASK[:4]], Picture([GREY, GREY[:4]], "IYX", Metadata((4, 4), "um")))
    assert [page.shape for page in read(answer.body).pages] == [MASK.shape, MASK[:4].shape]


def test_the_registry() -> None:
    """What the service and the programs list comes from here."""
    assert list(KINDS) == ["mask", "probability"]
    for name, kind in KINDS.items():
        assert kind.name == kind.wants == name
        assert "8-bit" in kind.description
        assert isinstance(kind.encode([MASK], Picture([GREY], "YX")), Answer)
