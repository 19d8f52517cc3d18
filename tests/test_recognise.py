"""Object ids, classes and soft edges are told apart."""

import cv2
import numpy as np
import pytest

from trainer.data.recognise import Verdict, look, recognise

SIZE = 128
Pages = list[tuple[np.ndarray, np.ndarray]]


def page(shapes: list[tuple[int, tuple[int, int], int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Label and image of discs: value, centre, radius, brightness."""
    label, image = np.zeros((2, SIZE, SIZE), np.uint8)
    for value, centre, radius, brightness in shapes:
        cv2.circle(label, centre, radius, value, -1)
        cv2.circle(image, centre, radius, brightness, -1)
    return label, image


def cells(rng: np.random.Generator, numbers: list[int]) -> list[tuple[int, tuple[int, int], int, int]]:
    """A disc for each number, somewhere, of any size and brightness."""
    places = rng.permutation(36)
    return [
        (n, (10 + 20 * int(place % 6), 10 + 20 * int(place // 6)), int(rng.integers(4, 9)), int(rng.integers(90, 250)))
        for n, place in zip(numbers, places, strict=False)
    ]


def verdict(pages: Pages, *, wide: bool = False, coloured: bool = False) -> Verdict:
    return recognise([look(label, image) for label, image in pages], 0, wide=wide, coloured=coloured)


def heart(rng: np.random.Generator, values: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Ventricles and muscle: three classes, each one piece of its own place, size and brightness."""
    shapes = {1: (1, (40, 60), 14, 220), 2: (2, (80, 60), 22, 90), 3: (3, (80, 60), 12, 200)}
    x, y = (int(n) for n in rng.integers(-4, 5, 2))
    return page([(v, (cx + x, cy + y), r, b) for v, (cx, cy), r, b in (shapes[value][:4] for value in values)])


def test_ids_of_many_or_few_objects(rng: np.random.Generator) -> None:
    many = [page(cells(rng, list(range(1, n + 1)))) for n in (20, 12, 33)]
    assert verdict(many).kind == "ids"
    few = [page(cells(rng, list(range(1, n + 1)))) for n in (3, 5, 4, 6, 2, 5)]
    assert verdict(few).kind == "ids"
    assert verdict(many[:1]).kind == "ids"


def test_ids_that_go_on_from_image_to_image(rng: np.random.Generator) -> None:
    assert verdict([page(cells(rng, list(range(start, start + 9)))) for start in (1, 10, 19)]).kind == "ids"


def test_ids_of_as_many_objects_in_every_image(rng: np.random.Generator) -> None:
    """A few values may be classes; but programs that number objects write 16 bits."""
    many = [page(cells(rng, list(range(1, 21)))) for _ in range(3)]
    assert verdict(many).kind == "ids"
    few = [page(cells(rng, [1, 2, 3])) for _ in range(5)]
    assert verdict(few, wide=True).kind == "ids"
    assert verdict(few) == verdict([page(cells(rng, [1, 2])) for _ in range(5)], wide=True)
    assert verdict(few).seen == "each value is one connected piece: if they are object ids, --labels instances"


def test_classes_of_one_piece_each_are_classes(rng: np.random.Generator) -> None:
    hearts = [heart(rng, values) for values in ([1, 2, 3], [1, 2, 3], [2, 3], [1, 2, 3], [3], [1, 2, 3])]
    assert verdict(hearts) == Verdict(
        "classes", "each value is one connected piece: if they are object ids, --labels instances"
    )


def test_classes_of_several_pieces_are_classes(rng: np.random.Generator) -> None:
    pages = [page(cells(rng, [1, 2, 3, 4] * 5)) for _ in range(4)]
    assert verdict(pages) == Verdict("classes")


def test_a_stack_of_the_same_objects_is_unclear(rng: np.random.Generator) -> None:
    """Ids with a place of their own may be classes of an atlas, too."""
    objects = cells(rng, list(range(1, 21)))
    pages = [page(objects[i : i + 15]) for i in range(5)]
    found = verdict(pages)
    assert (found.kind, found.seen[:45]) == ("unclear", "19 values, each value is one connected piece "[:45])


@pytest.mark.parametrize("interpolation", [cv2.INTER_LINEAR, cv2.INTER_AREA])
def test_soft_edges(interpolation: int, rng: np.random.Generator) -> None:
    labels = [page([(255, each[1], each[2], 0) for each in cells(rng, [1, 2, 3])])[0] for _ in range(3)]
    soft = [cv2.resize(label, (100, 100), interpolation=interpolation) for label in labels]
    found = verdict([(label, label) for label in soft])
    assert found.kind == "soft"
    assert "and lie between 0 and 255: soft edges" in found.seen


def test_rare_and_thin_classes_are_not_soft_edges() -> None:
    label, image = page([(1, (40, 40), 20, 99), (3, (90, 90), 25, 200)])
    cv2.line(label, (0, 100), (60, 120), 2, 1)
    assert verdict([(label, image)]).kind == "classes"
