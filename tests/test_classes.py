"""What values in labels mean: classes, objects, or a mistake."""

import re
from typing import Any

import numpy as np
import pytest

from trainer.data.classes import Labels, Meaning
from trainer.data.labels import LabelPage, Reading
from trainer.losses import IGNORED
from unet.errors import UserError

HALVES = np.repeat([[0] * 15 + [255] * 15], 20, axis=0).astype(np.uint8)
"""(20, 30): 0 on the left, 255 on the right."""
THIRDS = HALVES.copy()
THIRDS[:5] = 100
"""The same with 100 above both."""


def with_colour(*colour: int, background: int = 0) -> np.ndarray:
    """RGB, with `colour` on the right half."""
    return np.where((HALVES > 0)[:, :, None], np.uint8(colour), np.uint8(background))


def discs(n: int, rng: np.random.Generator, size: int = 96) -> np.ndarray:
    """Ids 1 to n of discs that may cover one another, in random order of their places."""
    ids = np.zeros((size, size), np.uint16)
    y, x = np.mgrid[:size, :size]
    cells = rng.permutation(64)[:n]
    for i, cell in enumerate(cells, start=1):
        centre = np.array([cell // 8, cell % 8]) * size / 8 + size / 16
        ids[np.hypot(y - centre[0], x - centre[1]) < rng.uniform(3, 6)] = i
    return ids


def collect(*pages: Any, **reading: Any) -> Labels:
    """Labels a, b, c, ... of grey images."""
    labels = Labels(Reading(**reading))
    for i, page in enumerate(pages):
        source = page if isinstance(page, LabelPage) else LabelPage(page)
        labels.add(source, np.zeros(source.values.shape[:2], np.uint8), "abcdefghijkl"[i])
    return labels


def meaning(*pages: Any, **reading: Any) -> Meaning:
    found, problems = collect(*pages, **reading).decide()
    assert found, problems
    return found


def drawn(*pages: Any, **reading: Any) -> list[tuple[np.ndarray, np.ndarray | None]]:
    labels = collect(*pages, **reading)
    found, problems = labels.decide()
    assert found, problems
    return list(labels.drawn(found))


def problem(*pages: Any, **reading: Any) -> str:
    found, problems = collect(*pages, **reading).decide()
    assert not found
    (line,) = problems
    return line


@pytest.mark.parametrize("pair", [(0, 1), (0, 255), (7, 9), (0, 65535), (-1, 0)])
def test_any_two_values_are_background_and_foreground(pair: tuple[int, int]) -> None:
    page = np.where(HALVES > 0, pair[1], pair[0]).astype(np.int32)
    found = meaning(page)
    assert (found.values, found.names) == (pair, ("background", "foreground"))
    np.testing.assert_array_equal(drawn(page)[0][0], HALVES // 255)


def test_labels_may_have_different_types() -> None:
    pages = [0 * HALVES, np.where(HALVES > 0, np.uint16(300), np.uint16(0))]
    assert [label.max() for label, _ in drawn(*pages)] == [0, 1]


def test_more_values_are_one_class_each() -> None:
    assert meaning(HALVES, THIRDS).values == (0, 100, 255)
    assert [np.unique(label).tolist() for label, _ in drawn(HALVES, THIRDS)] == [[0, 2], [0, 1, 2]]


def test_a_grey_label_saved_as_rgb_is_grey() -> None:
    assert meaning(np.repeat(HALVES[:, :, None], 3, axis=2)).values == (0, 255)


def test_colours_are_one_class_each_and_keep_their_names() -> None:
    """Classes 1, 2 and 16 of PASCAL VOC: the first and the third are equally bright."""
    pages = [with_colour(128, 0, 0), with_colour(0, 128, 0), with_colour(0, 64, 0)]
    pages[0] = LabelPage(pages[0], names={(0, 128, 0): "bicycle"})
    found = meaning(*pages)
    assert found.values == (0, 1, 2, 3)
    assert found.names == ("background", "#004000", "bicycle", "#800000")
    assert found.colours == ((0, 0, 0), (0, 64, 0), (0, 128, 0), (128, 0, 0))
    assert [np.unique(label).tolist() for label, _ in drawn(*pages)] == [[0, 3], [0, 2], [0, 1]]


def test_one_colour_on_black_or_white_is_the_foreground() -> None:
    assert meaning(with_colour(255, 0, 0)).values == (0, 255)
    np.testing.assert_array_equal(drawn(with_colour(255, 0, 0, background=255))[0][0], HALVES // 255)


def test_grey_labels_beside_labels_in_colour_are_black_and_white_only() -> None:
    assert meaning(with_colour(255, 0, 0), HALVES).names == ("background", "#ff0000", "#ffffff")
    assert problem(with_colour(255, 0, 0), THIRDS) == "b: found grey values 100, while other labels are in colour"


PALETTE = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 255: (224, 224, 192)}


def test_indices_of_a_palette_are_the_classes_and_its_colours_are_kept() -> None:
    page = LabelPage(THIRDS // 100, PALETTE, {1: "cell", (0, 128, 0): "yeast"})
    found = meaning(page)
    assert (found.values, found.names) == ((0, 1, 2), ("background", "cell", "yeast"))
    assert found.colours == ((0, 0, 0), (128, 0, 0), (0, 128, 0))


def test_a_palette_does_not_turn_a_label_round() -> None:
    labels = collect(LabelPage(HALVES // 255, {0: (255, 255, 255), 1: (0, 0, 0)}))
    found, _ = labels.decide()
    assert found
    np.testing.assert_array_equal(next(labels.drawn(found))[0], HALVES // 255)
    assert labels.notes[0].startswith("1 is the foreground, as stored, though the palette shows it darker")


def test_index_255_of_a_palette_is_ignored() -> None:
    page = THIRDS // 100
    page[-3:] = 255
    labels = collect(LabelPage(page, PALETTE))
    found, _ = labels.decide()
    assert found
    assert found.values == (0, 1, 2)
    assert labels.notes == ["index 255 of the palette is ignored, as in PASCAL VOC"]
    ((label, _),) = labels.drawn(found)
    assert (label[-3:] == IGNORED).all()
    assert label[:-3].max() == 2
    assert meaning(LabelPage(HALVES, {255: (1, 2, 3)})).values == (0, 255)  # a mask


def test_black_and_white_of_a_palette_are_those_of_grey_labels() -> None:
    """A GIF stores 0 and 1, a PNG 0 and 255."""
    gif = LabelPage(HALVES // 255, {0: (0, 0, 0), 1: (255, 255, 255)})
    assert meaning(HALVES, gif).values == (0, 255)
    assert meaning(gif, HALVES // 255).values == (0, 1)


def test_colours_are_the_classes_where_palettes_differ() -> None:
    """Index 1 is grey in one GIF and white in the other, which has no grey."""
    grey = LabelPage(THIRDS // 100, {0: (0, 0, 0), 1: (128, 128, 128), 2: (255, 255, 255)})
    labels = collect(grey, LabelPage(HALVES // 255, {0: (0, 0, 0), 1: (255, 255, 255)}))
    found, _ = labels.decide()
    assert found
    assert found.values == (0, 128, 255)
    assert [np.unique(label).tolist() for label, _ in labels.drawn(found)] == [[0, 1, 2], [0, 2]]
    assert "palettes differ" in labels.notes[0]


def test_names_are_in_the_order_of_the_values() -> None:
    assert meaning(THIRDS, class_names=("sky", "road", "car")).names == ("sky", "road", "car")
    assert (
        problem(THIRDS, class_names=("sky", "road"))
        == "--class-names: found 2 names; expected 3, for the values 0, 100, 255"
    )


def test_a_value_and_what_the_source_marks_are_ignored() -> None:
    assert meaning(THIRDS, ignore_value="100").values == (0, 255)
    marked = LabelPage(THIRDS, ignored=np.arange(30)[None].repeat(20, axis=0) < 8)
    ((label, _),) = drawn(marked, ignore_value="100")
    np.testing.assert_array_equal(label[:5], IGNORED)
    np.testing.assert_array_equal(label[5:], [[IGNORED] * 8 + [0] * 7 + [1] * 15] * 15)


def test_a_colour_is_ignored() -> None:
    page = with_colour(255, 0, 0)
    page[:5] = (0, 0, 255)
    ((label, _),) = drawn(page, ignore_value="#000000")
    assert np.unique(label).tolist() == [0, 1, IGNORED]
    assert problem(page, ignore_value="0") == "--ignore-value 0: expected a colour, #rrggbb, as the labels have"
    assert problem(HALVES, ignore_value="#000000").endswith("expected a number, since labels are grey")
    with pytest.raises(UserError, match="--ignore-value void: expected a whole number, or a colour as #rrggbb"):
        Reading(ignore_value="void")


def test_a_value_that_looks_like_no_opinion_is_hinted_at() -> None:
    page = np.repeat([[0] * 12 + [1] * 14 + [255] * 4], 20, axis=0).astype(np.uint8)
    labels = collect(page)
    labels.decide()
    assert labels.notes == ["--ignore-value 255 if 255 means 'no opinion' rather than a class"]
    labels = collect(page, ignore_value="7")
    labels.decide()
    assert labels.notes[0] == "--ignore-value 7: no pixel has this value"


def test_white_beside_other_colours_may_be_no_opinion() -> None:
    page = with_colour(255, 0, 0)
    page[-2:] = 255
    labels = collect(page)
    labels.decide()
    assert labels.notes == ["--ignore-value '#ffffff' if white means 'no opinion' rather than a class"]
    assert drawn(page, ignore_value="#ffffff")[0][0][-1, 0] == IGNORED


@pytest.mark.parametrize("kind", ["auto", "threshold"])
def test_what_is_not_a_number_is_ignored(kind: str) -> None:
    page = (HALVES / np.float32(255)).astype(np.float32)
    page[:5] = np.nan
    labels = collect(page, labels=kind)
    found, _ = labels.decide()
    assert found
    assert labels.notes[0] == "pixels of labels that are not a number (NaN) are ignored"
    ((label, _),) = labels.drawn(found)
    assert (label[:5] == IGNORED).all()
    np.testing.assert_array_equal(label[5:], HALVES[5:] // 255)


def test_one_label_may_hold_one_class_but_a_data_set_may_not() -> None:
    assert meaning(HALVES, 0 * HALVES)
    assert problem(0 * HALVES).startswith("labels: found only the value 0 in all labels; expected at least two values")


def test_a_foreground_of_1_in_one_label_and_255_in_another_is_not_a_third_class() -> None:
    assert problem(0 * HALVES, HALVES // 255, HALVES) == (
        "labels: the foreground is 1 in b and 255 in c; expected one value per class: save all as 0 and 255, "
        "or as 0, 1 and 2 if these are three classes"
    )
    both = HALVES.copy()
    both[:5] = 1
    assert meaning(HALVES // 255, both).values == (0, 1, 255)


def test_class_values_beyond_8_bits_are_refused() -> None:
    three = HALVES.astype(np.float32)
    three[:5] = -1
    expected = "b: class values are -1 to 255 in all; expected 0 to 255, since masks have 8 bits"
    assert problem(HALVES, three).startswith(expected)
    assert problem(HALVES, three).endswith("for pixels without an opinion: --ignore-value -1)")
    many = problem(HALVES, HALVES.astype(np.uint16) * 2)
    assert many.startswith("b: class values are 0 to 510")
    assert many.endswith("--ignore-value 510)")


def test_too_many_values_in_a_data_set_are_refused() -> None:
    pages = [np.arange(start, start + 50, dtype=np.uint8).reshape(5, 10) for start in (0, 50)]
    line = problem(*pages)
    assert line.startswith("labels: found 100 different values in all; expected 2 to 64, or object ids (--labels inst")


def test_soft_edges_are_refused_or_divided() -> None:
    soft = HALVES.copy()
    soft[:, 14:16] = (85, 170)
    labels = [np.tile(HALVES, (8, 8)), np.tile(soft, (8, 8))]
    labels[1][:, :-40] = labels[0][:, :-40]
    assert problem(*labels) == (
        "labels: 2 of 4 values cover 0.4% of the pixels and lie between 0 and 255: soft edges, in b; save labels as "
        "PNG and resize them with nearest-neighbour interpolation, or --labels threshold"
    )
    assert meaning(*labels, labels="classes").values == (0, 85, 170, 255)
    for page in (soft, soft / np.float32(255)):
        assert meaning(page, labels="threshold").values == (0, 255)
        np.testing.assert_array_equal(drawn(page, labels="threshold")[0][0], HALVES // 255)


def test_object_ids_are_recognised(rng: np.random.Generator) -> None:
    pages = [discs(n, rng) for n in (9, 14, 5)]
    labels = collect(*pages)
    found, _ = labels.decide()
    assert found
    assert (found.values, found.names, found.instances) == ((0, 255), ("background", "object"), True)
    assert labels.notes[0].startswith(
        "values are taken for object ids: each value is one connected piece, and they differ"
    )
    for page, (label, objects) in zip(pages, labels.drawn(found), strict=True):
        np.testing.assert_array_equal(objects, page)
        np.testing.assert_array_equal(label, page > 0)
    assert meaning(*pages, labels="classes").values == tuple(range(15))


def test_ids_may_be_large_have_several_parts_and_be_ignored() -> None:
    ids = np.zeros((4, 6), np.uint32)
    ids[0, :2] = ids[3, :2] = 4_000_000_000
    ids[:, 3] = 70_000
    ids[:, 5] = 9
    ((label, objects),) = drawn(ids, labels="instances", ignore_value="9")
    assert objects is not None
    assert objects.tolist() == [[2, 2, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0], [2, 2, 0, 1, 0, 0]]
    assert (label[:, 5] == IGNORED).all()


def test_pieces_of_a_foreground_are_objects_on_request() -> None:
    page = np.zeros((5, 5), np.uint8)
    page[0, 0] = page[1, 1] = page[4] = 255
    labels = collect(page, labels="instances")
    found, _ = labels.decide()
    assert found
    ((_, objects),) = labels.drawn(found)
    assert objects is not None
    assert [int(objects[each]) for each in ((0, 0), (1, 1), (4, 0), (4, 4))] == [1, 2, 3, 3]
    assert labels.notes == ["each connected piece of the value 255 is taken for an object"]


def test_objects_that_the_source_knows_are_taken_on_request() -> None:
    ids = np.where(HALVES > 0, np.arange(20, dtype=np.int32)[:, None] // 10 + 1, 0).astype(np.int32)
    page = LabelPage(THIRDS, objects=ids)
    assert meaning(page).values == (0, 100, 255)
    ((label, objects),) = drawn(page, labels="instances")
    np.testing.assert_array_equal(objects, ids)
    np.testing.assert_array_equal(label, HALVES // 255)


@pytest.mark.parametrize(
    ("page", "name", "message"),
    [
        (THIRDS, "x.jpg", "found 3 different values in a lossy file: soft edges; save labels as PNG"),
        (HALVES / np.float32(510), "x.tif", "found values that are not whole numbers"),
        (np.full((4, 4), np.nan, np.float32), "x.tif", "found values that are not whole numbers"),
        (np.zeros((4, 4, 5), np.uint8), "x.tif", "found 5 channels; expected grey or RGB"),
        (np.arange(48).reshape(4, 4, 3).astype(np.uint16), "x.tif", "found colours of type uint16; expected 8 bits"),
    ],
)
def test_pages_that_cannot_be_labels_are_refused(page: np.ndarray, name: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        Labels(Reading()).add(LabelPage(page), page, name)
