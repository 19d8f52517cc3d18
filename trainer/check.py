"""What a data set holds, in words, and `check.png`: a contact sheet to look at before a night of training."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.ndimage import find_objects

from trainer.data import DataSet, Sample
from trainer.data.dataset import n_channels
from trainer.data.labels import Colour
from trainer.losses import IGNORED
from trainer.pictures import DPI, png, rgb
from unet.checkpoint import default_colours
from unet.files import replace_atomically
from unet.listing import plural

CHECK = "check.png"
MOST = 24  # images in the contact sheet
WIDTH, GAP, LINE = 1800, 14, 22  # pixels: of the sheet, between pictures, of a line of text
LARGEST = 4096  # pixels: of larger images every n-th row and column is shown
OBJECT_COLOURS = default_colours(13)[1::2] + default_colours(13)[2::2]
FOREGROUND_COLOURS: tuple[Colour, ...] = ((255, 138, 0), (0, 190, 255), (80, 220, 40))

Array = npt.NDArray[Any]
Picture = npt.NDArray[np.uint8]


def check(data: DataSet, name: str, out: Path) -> None:
    """Print what a data set holds, and write OUT/check.png."""
    print(f"data      {name}", *(f"          {line}" for line in describe(data)), sep="\n")
    out.mkdir(parents=True, exist_ok=True)
    replace_atomically(out / CHECK, contact_sheet(data, name))
    print(f"checked; nothing was trained. Look at {out / CHECK}, whether the outlines fit")


def describe(data: DataSet) -> list[str]:
    """Images, a line for each class, objects, and what was guessed or left out."""
    images = [sample.image for sample in data.samples]
    n = len(images)
    sizes = sorted({(image.shape[1], image.shape[0]) for image in images}, key=lambda size: (size[0] * size[1], size))
    size = " to ".join(f"{width} x {height}" for width, height in dict.fromkeys((sizes[0], sizes[-1])))
    types, channels = Counter(str(image.dtype) for image in images), Counter(n_channels(image) for image in images)
    names = {1: "grey", 3: "RGB"}
    kinds = Counter({names.get(k, f"{k} channels"): number for k, number in channels.items()})
    lines = [f"{plural(n, 'image')} of {size} pixels, {_shares(types)}, {_shares(kinds)}"]

    totals = np.array([[sample.counts[i] for i in range(IGNORED + 1)] for sample in data.samples])  # (N, 256) pixels
    opinions = max(int(totals[:, :IGNORED].sum()), 1)
    ignored = int(totals[:, IGNORED].sum())
    width = max(map(len, (*data.class_names, "ignored" if ignored else "")))
    digits = max(len(str(value)) for value in data.class_values)
    for i, (value, class_name) in enumerate(zip(data.class_values, data.class_names, strict=True)):
        share, where = totals[:, i].sum() / opinions, int((totals[:, i] > 0).sum())
        lines.append(
            f"class {value:<{digits}}  {class_name:<{width}}  {share:6.1%} of the pixels, in {plural(where, 'image')}"
        )
    if ignored:
        where = int((totals[:, IGNORED] > 0).sum())
        share = ignored / totals.sum()
        lines.append(
            f"{'':{digits + 6}}  {'ignored':<{width}}  {share:6.1%} of all pixels, in {plural(where, 'image')}"
        )
    if data.instances:
        areas = [np.bincount(s.objects.ravel())[1:] for s in data.samples if s.objects is not None]
        found = np.concatenate([each[each > 0] for each in areas])
        across = f", {np.sqrt(np.median(found) * 4 / np.pi):.0f} pixels across (median)" if len(found) else ""
        lines.append(
            f"{plural(len(found), 'object')} in {plural(sum(len(each) > 0 for each in areas), 'image')}{across}"
        )
    return lines + list(data.notes)


def contact_sheet(data: DataSet, name: str) -> bytes:
    """PNG: images spread over the data set, with the outlines of the classes, or of the objects, of their labels."""
    n = min(len(data.samples), MOST)
    shown = [data.samples[i] for i in np.linspace(0, len(data.samples) - 1, n).round().astype(int)]
    tallest = max(sample.label.shape[0] / sample.label.shape[1] for sample in shown)
    columns = min(n, max(1, round(float(np.sqrt(1.6 * n * min(tallest, 2))))))
    side = min(800, (WIDTH - GAP) // columns - GAP)
    if len(data.class_values) == 2 and data.class_colours == default_colours(2):
        data = replace(data, class_colours=(data.class_colours[0], contrasting(shown)))
    pictures = [outlined(sample, data, side, max_height=round(side * min(tallest, 2))) for sample in shown]
    cells = list(zip(shown, pictures, strict=True))
    rows = [cells[i : i + columns] for i in range(0, n, columns)]
    heights = [max(len(picture) for _, picture in row) for row in rows]

    patches = [] if data.instances else legend(data)
    width = max(columns * (side + GAP) + GAP, 600)
    longest = max([len(str(patch.get_label())) for patch in patches], default=1)
    per_line = min(max(1, width // (9 * longest + 55)), max(1, len(patches)))
    legend_lines = -(-len(patches) // per_line)
    top = GAP + LINE + LINE * legend_lines + LINE // 2
    height = top + sum(heights) + len(rows) * (LINE + GAP)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    more = f", {n} of them here" if n < len(data.samples) else ""
    objects = ", each object in a colour of its own" if data.instances else ""
    title = f"{name}: {plural(len(data.samples), 'image')}{more}{objects}"
    figure.text(GAP / width, 1 - (GAP + 4) / height, title, va="top", fontsize=13, fontweight="bold")
    if patches:
        place, n_columns = (0, 1 - (GAP + LINE + 4) / height), -(-len(patches) // legend_lines)
        figure.legend(
            handles=patches, loc="upper left", bbox_to_anchor=place, ncols=n_columns, frameon=False, fontsize=10,
            handlelength=1.2, borderaxespad=0, columnspacing=1.5,
        )  # fmt: skip
    y = top
    for row, tall in zip(rows, heights, strict=True):
        for i, (sample, picture) in enumerate(row):
            x, (h, w) = GAP + i * (side + GAP), sample.label.shape
            text = f"{_cut(sample.name, side // 7 - 13)}  {w} x {h}"
            figure.text(x / width, 1 - (y + LINE - 5) / height, text, va="bottom", fontsize=8.5, color="0.25")
            figure.figimage(picture, xo=x, yo=height - y - LINE - len(picture))
        y += LINE + tall + GAP
    return png(figure)


def outlined(sample: Sample, data: DataSet, side: int, max_height: int) -> Picture:
    """Picture (h, w, 3) of a sample, at most `side` wide: outlines and a tint of classes or objects, grey stripes where
    there is no opinion."""
    step = max(1, -(-max(sample.label.shape) // LARGEST))
    label, image = sample.label[::step, ::step], rgb(sample.image[::step, ::step])
    scale = min(side / label.shape[1], max_height / label.shape[0])
    size = max(1, round(label.shape[1] * scale)), max(1, round(label.shape[0] * scale))
    picture = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    tint = picture.copy()
    shapes = objects_of(sample.objects[::step, ::step]) if sample.objects is not None else classes_of(label, data)
    drawn = []
    for mask, offset, colour in shapes:
        contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        scaled = [np.rint(((c + offset + 0.5) * scale - 0.5) * 16).astype(np.int32) for c in contours]
        cv2.fillPoly(tint, scaled, colour, cv2.LINE_AA, shift=4)
        drawn.append((scaled, colour))
    picture = cv2.addWeighted(picture, 0.8, tint, 0.2, 0)
    for scaled, colour in drawn:
        cv2.polylines(picture, scaled, True, colour, 2 if side >= 500 else 1, cv2.LINE_AA, shift=4)
    void = cv2.resize((label == IGNORED).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    stripes = np.add(*np.indices(void.shape)) % 12 < 6
    picture[void] = np.where(stripes[void][:, None], 200, 0.4 * picture[void] + 50).astype(np.uint8)
    return np.asarray(picture, np.uint8)


def contrasting(samples: list[Sample]) -> Colour:
    """The colour for a single foreground that is most unlike those of the images."""
    usual = np.mean([rgb(sample.image[::8, ::8]).mean(axis=(0, 1)) for sample in samples], axis=0)
    return max(FOREGROUND_COLOURS, key=lambda colour: float(np.linalg.norm(np.array(colour) - usual)))


def classes_of(label: Array, data: DataSet) -> list[tuple[Picture, tuple[int, int], Colour]]:
    """Mask, place x, y, and colour of each class but the first, which is what they leave."""
    return [
        ((label == i).astype(np.uint8), (0, 0), data.class_colours[i])
        for i in range(1, len(data.class_values))
        if (label == i).any()
    ]


def objects_of(ids: Array) -> list[tuple[Picture, tuple[int, int], Colour]]:
    """Mask, place x, y of its corner, and colour of each object."""
    return [
        ((ids[box] == i).astype(np.uint8), (box[1].start, box[0].start), OBJECT_COLOURS[i * 5 % len(OBJECT_COLOURS)])
        for i, box in enumerate(find_objects(ids), start=1)
        if box
    ]


def legend(data: DataSet) -> list[Patch]:
    """Patches with the names and values of the classes, and of pixels without an opinion if there are some."""
    patches = []
    for value, name, colour in zip(data.class_values, data.class_names, data.class_colours, strict=True):
        text = name if name == str(value) else f"{value} {name}"
        red, green, blue = (each / 255 for each in colour)
        patches.append(Patch(facecolor=(red, green, blue), edgecolor="0.5", label=text))
    if any((sample.label == IGNORED).any() for sample in data.samples):
        patches.append(Patch(facecolor="0.8", edgecolor="0.4", hatch="////", label="ignored"))
    return patches


def _shares(counts: Counter[str]) -> str:
    """uint8; or uint8 (30) and uint16 (8)."""
    return " and ".join(f"{kind} ({n})" if len(counts) > 1 else kind for kind, n in counts.most_common())


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else "..." + text[-max(length - 3, 1) :]
