"""Layouts of annotation tools: nnU-Net's and Pascal VOC's folders, COCO's JSON, and JSON beside images.

A layout is a function of a folder that answers None where the folder is none of its kind.
"""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from trainer.data.annotations import Annotations, Coco
from trainer.data.files import Tree, images_of
from trainer.data.labels import Colour, LabelFile, LabelPage
from trainer.data.shapes import BACKGROUND, IGNORE, Drawing, Legend
from unet.listing import composed, natural_order, plural, some, stem

MANY = 5  # problems of one kind: more are one line
VOC_VOID = (224, 224, 192)  # colour of pixels without an opinion, where masks are RGB
NO_CLASS = {BACKGROUND, IGNORE, "background", "Background"}  # names of shapes: of these, the second has no value


class LabelSource(Protocol):
    """What the label of an image is read from: a file, or shapes."""

    @property
    def name(self) -> str:
        """Its file in messages, relative to the data folder."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that is read."""

    def read(self, sizes: list[tuple[int, int]]) -> list[LabelPage]:
        """Pages of the label of an image whose pages have these sizes (H, W)."""


class Pair(NamedTuple):
    """An image with its label."""

    name: str
    image: Path | tuple[Path, ...]  # several files: a channel each
    label: LabelSource

    @property
    def images(self) -> tuple[Path, ...]:
        return self.image if isinstance(self.image, tuple) else (self.image,)


@dataclass
class Found:
    """What a data folder holds."""

    pairs: list[Pair] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # a line each
    left_out: list[str] = field(default_factory=list)  # what is not used, and what was guessed: a line each
    used: set[Path] = field(default_factory=set)  # files beside those of the pairs

    def without_partner(self, files: list[str], problem: str) -> None:
        """Add a problem of each of the files, or of many of them in one line."""
        if len(files) > MANY:
            self.problems.append(f"{plural(len(files), 'file')} {problem.format('*')}: {some(files)}")
        else:
            self.problems += [f"{file}: {problem.format(stem(Path(file)))}" for file in files]


def nnunet(tree: Tree) -> Found | None:
    """nnU-Net's raw data: imagesTr/NAME_0000.png (_0001 is the second channel), labelsTr/NAME.png, dataset.json."""
    images_folder, labels_folder = tree.folder("imagesTr"), tree.folder("labelsTr")
    if not (images_folder and labels_folder):
        return None
    found, description = Found(), tree.root / "dataset.json"
    names: dict[int | Colour, str] = {}
    ignored: int | None = None
    if description.is_file():
        found.used.add(description)
        try:
            labels = json.loads(description.read_bytes())["labels"]
            pairs = [(value, key) if str(key).isdigit() else (key, value) for key, value in labels.items()]
            names = {int(value): str(name) for name, value in pairs}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            found.problems.append(f'dataset.json: expected "labels" with a number for each name ({error!r})')
        ignored = next((int(v) for v, name in names.items() if name == "ignore" and isinstance(v, int)), None)
        names = {value: name for value, name in names.items() if value != ignored}
    channels: dict[str, list[Path]] = {}
    for path in images_of(tree.folders[images_folder]):
        case, _, channel = stem(path).rpartition("_")
        channels.setdefault(case if len(channel) == 4 and channel.isdigit() else stem(path), []).append(path)
    labels_by_case = {stem(path): path for path in images_of(tree.folders[labels_folder])}
    for case in channels.keys() & labels_by_case.keys():
        image = tuple(channels[case])
        source = Marked(LabelFile(labels_by_case[case], tree.name(labels_by_case[case]), names), ignored)
        found.pairs.append(Pair(case, image[0] if len(image) == 1 else image, source))
    alone = [tree.name(channels[case][0]) for case in channels if case not in labels_by_case]
    found.without_partner(alone, "has no label in labelsTr/")
    found.without_partner([tree.name(labels_by_case[c]) for c in labels_by_case if c not in channels], "has no image")
    return found


@dataclass(frozen=True)
class Marked:
    """A label file with what other files say of its values."""

    file: LabelFile
    ignored: int | Colour | None  # value or colour of pixels without an opinion
    colour_names: Mapping[Colour, str] = field(default_factory=dict)
    objects_file: LabelFile | None = None  # a value or colour for each object

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def files(self) -> tuple[Path, ...]:
        return self.file.files + (self.objects_file.files if self.objects_file else ())

    def read(self, sizes: list[tuple[int, int]]) -> list[LabelPage]:
        pages = self.file.read(sizes)
        others = self.objects_file.read(sizes) if self.objects_file else []
        return [self._marked(page, other) for page, other in zip_longest(pages, others[: len(pages)])]

    def _marked(self, page: LabelPage, objects: LabelPage | None) -> LabelPage:
        names: dict[int | Colour, str] = {**page.names}
        for colour, name in self.colour_names.items():
            names[colour] = name
            names |= {value: name for value, of_value in page.colours.items() if of_value == colour}
        page = dataclasses.replace(page, names=names)
        if self.ignored is not None and page.values.ndim == 2 + np.ndim(self.ignored):
            equal = (np.atleast_3d(page.values) == self.ignored).all(axis=2)
            page = dataclasses.replace(page, ignored=equal if equal.any() else None)
        if objects is not None:
            colours = objects.values.astype(np.int64).reshape(*objects.values.shape[:2], -1)
            ids = (colours * 256 ** np.arange(colours.shape[2])).sum(axis=2)
            ids = np.unique(np.append(0, ids), return_inverse=True)[1][1:].reshape(ids.shape).astype(np.int32)
            page = dataclasses.replace(page, objects=ids)
        return page


def voc(tree: Tree) -> Found | None:
    """Pascal VOC's folders, also CVAT's "Segmentation mask 1.1": JPEGImages/, SegmentationClass/, labelmap.txt; and
    those of labelme: names by value in class_names.txt, SegmentationClassPNG/ beside arrays."""
    folders = [tree.folder(name) for name in ("SegmentationClass", "SegmentationClassPNG")]
    labels_folder = next((folder for folder in folders if folder and images_of(tree.folders[folder])), None)
    images_folder = tree.folder("JPEGImages")
    if labels_folder is None:
        return None
    found, label_map, objects_folder = Found(), tree.root / "labelmap.txt", tree.folder("SegmentationObject")
    colour_names: dict[Colour, str] = {}
    if label_map.is_file():  # name:r,g,b:parts:actions
        found.used.add(label_map)
        lines = label_map.read_text(errors="replace").splitlines()
        for line in (line for line in lines if line.strip() and not line.startswith("#")):
            if values := re.match(r"(.*?):(\d+),(\d+),(\d+)(:|$)", line):
                colour_names[tuple(map(int, values.groups()[1:4]))] = values[1]
            else:
                found.problems.append(f"labelmap.txt: expected name:red,green,blue in each line, found {line!r:.80}")
    names: dict[int | Colour, str] = {}
    if (listed := tree.root / "class_names.txt").is_file():
        found.used.add(listed)
        lines = [line.strip() for line in listed.read_text(errors="replace").splitlines() if line.strip()]
        names = dict(enumerate(name.strip("_") for name in lines if name != IGNORE))
    images = {stem(path): path for path in images_of(tree.folders.get(images_folder or tree.root, []))}
    objects = {stem(path): path for path in images_of(tree.folders[objects_folder])} if objects_folder else {}
    alone = []
    for path in images_of(tree.folders[labels_folder]):
        if stem(path) not in images:
            alone.append(tree.name(path))
            continue
        other = objects.get(stem(path))
        objects_file = LabelFile(other, tree.name(other)) if other else None
        source = Marked(LabelFile(path, tree.name(path), names), VOC_VOID, colour_names, objects_file)
        found.pairs.append(Pair(stem(path), images[stem(path)], source))
    found.without_partner(alone, "has no image JPEGImages/{}.* (in CVAT: save images with the export)")
    return found


def coco(tree: Tree, contents: dict[Path, Annotations | Coco]) -> Found | None:
    """COCO: one JSON for all images, which are anywhere in the folder."""
    files = {path: content for path, content in contents.items() if isinstance(content, Coco)}
    if not files:
        return None
    if len(files) > 1:
        names = some(map(tree.name, files), 10)
        return Found(problems=[f"found {len(files)} files of COCO: {names}; expected one: --data FILE"])
    ((path, content),) = files.items()
    found, places = Found(used={path}), dict[str, list[Path]]()
    for image in (image for folder in tree.folders.values() for image in images_of(folder)):
        places.setdefault(composed(image.name), []).append(image)
    missing: list[str] = []
    drawn: list[tuple[Path, Annotations]] = []
    for each in content.images:
        wanted = composed(each.image.replace("\\", "/"))
        candidates = places.get(wanted.rpartition("/")[2], [])
        exact = [image for image in candidates if f"/{composed(image.as_posix())}".endswith(f"/{wanted}")] or candidates
        if len(exact) == 1:
            drawn.append((exact[0], each))
        else:
            missing.append(f"{wanted} ({some(map(tree.name, exact))})" if exact else wanted)
    if missing:
        found.problems.append(
            f"{tree.name(path)}: {len(missing)} of its {len(content.images)} images are not in the folder, or there "
            f"are several of the name: {some(missing)}"
        )
    legend = _legend(found, [each for _, each in drawn], content.categories)
    for image, each in drawn:
        name = Path(tree.name(image)).with_suffix("").as_posix()
        found.pairs.append(Pair(name, image, Drawing(tree.name(path), (path,), each.shapes, legend, each.size)))
    return found


def beside(tree: Tree, contents: dict[Path, Annotations], images: dict[str, Path], found: Found) -> None:
    """Add the pairs of JSON files, one for each image: the one that the file names, or one of its own name."""
    drawn: list[tuple[Path, Path, Annotations]] = []
    for path, content in contents.items():
        named = path.parent / content.image.replace("\\", "/")
        own = images.get(stem(path)) or images.get(stem(Path(stem(path))))  # a.json or a.tif.json of a.tif
        if image := named if content.image and named.is_file() else own:
            drawn.append((path, image, content))
        else:
            missing = f"its image {content.image or stem(path) + '.*'} is not there"
            found.problems.append(f"{tree.name(path)}: {missing} (a copy inside the JSON is not read)")
    legend = _legend(found, [content for *_, content in drawn])
    for path, image, content in drawn:
        drawing = Drawing(tree.name(path), (path,), content.shapes, legend, content.size)
        found.pairs.append(Pair(stem(image), image, drawing))


def _legend(found: Found, drawn: list[Annotations], order: list[str] | None = None) -> Legend:
    """Values of the classes in an order, by default that of their names. Shapes without a class are the only class, or
    taken out; what is not drawn is told."""
    names = {shape.name for each in drawn for shape in each.shapes}
    ignored = sum((each.ignored for each in drawn), Counter[str]())
    if names - {"", *NO_CLASS}:
        for each in drawn:
            ignored["shape without a class"] += sum(not shape.name for shape in each.shapes)
            each.shapes[:] = [shape for shape in each.shapes if shape.name]
        names -= {""}
    classes = [name for name in order or sorted(names, key=natural_order) if name not in NO_CLASS]
    if kinds := ", ".join(f"{number} {kind}" for kind, number in ignored.items() if number):
        found.left_out.append(f"shapes that are not drawn: {kinds}")
    if drawn:
        found.left_out.append("where shapes overlap, the later one in the file is drawn over the earlier one")
    colours = {name: colour for each in drawn for name, colour in each.colours.items() if name in classes}
    return Legend({name: i for i, name in enumerate(dict.fromkeys(classes), 1)}, colours)
