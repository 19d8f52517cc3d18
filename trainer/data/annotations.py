"""JSON of annotation tools: labelme, QuPath (GeoJSON) and COCO -> shapes."""

import base64
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from trainer.data.labels import Array, Colour
from trainer.data.shapes import IGNORE, Mask, Shape
from unet import imaging
from unet.errors import UserError

Number = Annotated[float, Field(gt=-1e9, lt=1e9)]  # pixels; refuses NaN, too
Byte = Annotated[int, Field(ge=0, le=255)]
Ring = list[tuple[Number, Number]]
_QUPATH_IGNORE, _QUPATH_REGION = "Ignore*", "Region*"


@dataclass
class Annotations:
    """What one file says of one image."""

    image: str  # path of the image from the file on, or its name; "" if the file does not say it
    size: tuple[int, int] | None = None  # (H, W) of the image, if the file says it
    shapes: list[Shape] = field(default_factory=list)
    colours: dict[str, Colour] = field(default_factory=dict)  # RGB by class name
    ignored: Counter[str] = field(default_factory=Counter)  # kinds of shapes that cover no pixels, with their numbers

    def add(self, shape: Shape, kind: str) -> None:
        """Add a shape, or count it as ignored if its polygons have no area."""
        polygons = [[ring for ring in rings if len(ring) > 2] for rings in shape.polygons if len(rings[0]) > 2]
        if polygons or shape.bitmap:
            self.shapes.append(Shape(shape.name, polygons, shape.bitmap, shape.corner, shape.group))
        else:
            self.ignored[f"{kind} of fewer than 3 points"] += 1


@dataclass
class Coco:
    """Annotations of many images, with the classes in the order of the file."""

    categories: list[str]
    images: list[Annotations]


def read(path: Path) -> Annotations | Coco | None:
    """The annotations in a JSON file; None if it is of another kind. Raises UserError, OSError."""
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"is no JSON: {error}") from error
    try:
        match data:
            case {"shapes": list()}:
                return _Labelme.model_validate(data).read()
            case {"images": list(), "annotations": list()}:
                return _Coco.model_validate(data).read()
            case {"type": "FeatureCollection", "features": list(features)} | ([{"type": "Feature"}, *_] as features):
                return _Features.model_validate({"features": features}).read()
            case {"type": "Feature"}:
                return _Features.model_validate({"features": [data]}).read()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}, found {first['input']!r:.80}"
        ) from error
    return None


class _LabelmeShape(BaseModel, coerce_numbers_to_str=True):
    label: str
    points: Ring
    shape_type: str | None = None
    group_id: int | str | None = None
    mask: str | None = None  # a PNG, base64

    def polygon(self) -> Array | None:
        """The outline (N, 2); None for points and lines."""
        points = to_array(self.points)
        match self.shape_type or "polygon", len(points):
            case "rectangle", 2:
                (x0, y0), (x1, y1) = points
                return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
            case (("polygon" | "rectangle" | "oriented_rectangle" | "rotation"), _):
                return points
            case "circle", 2:  # centre, a point of the edge
                angles = np.linspace(0, 2 * np.pi, 512, endpoint=False)
                radius = math.dist(*self.points)
                return np.stack(
                    [points[0, 0] + radius * np.cos(angles), points[0, 1] + radius * np.sin(angles)], axis=1
                )
        return None


class _Labelme(BaseModel):
    shapes: list[_LabelmeShape]
    imagePath: str = ""  # noqa: N815
    imageHeight: int | None = None  # noqa: N815
    imageWidth: int | None = None  # noqa: N815

    def read(self) -> Annotations:
        found = Annotations(self.imagePath, _size(self.imageHeight, self.imageWidth))
        for shape in self.shapes:
            if shape.mask and shape.points:  # its points are the corners of the box that it fills
                x, y = (int(v) for v in shape.points[0])
                bitmap = partial(_png, shape.mask)
                found.add(Shape(shape.label, bitmap=bitmap, corner=(x, y), group=shape.group_id), "mask")
            elif (outline := shape.polygon()) is None:
                found.ignored[str(shape.shape_type)] += 1
            else:
                found.add(Shape(shape.label, [[outline]], group=shape.group_id), shape.shape_type or "polygon")
        return found


class _Polygon(BaseModel):
    type: Literal["Polygon"]
    coordinates: list[Ring]


class _MultiPolygon(BaseModel):
    type: Literal["MultiPolygon"]
    coordinates: list[list[Ring]]


class _NoArea(BaseModel):
    type: Literal["Point", "MultiPoint", "LineString", "MultiLineString", "GeometryCollection"]


class _Classification(BaseModel):
    name: str | None = None
    names: list[str] = []  # QuPath from 0.5 on, of derived classes
    color: tuple[Byte, Byte, Byte] | None = None
    colorRGB: int | None = None  # noqa: N815  (QuPath before 0.3: 0xAARRGGBB, signed)


class _Properties(BaseModel):
    classification: _Classification | None = None


class _Feature(BaseModel):
    geometry: Annotated[_Polygon | _MultiPolygon | _NoArea, Field(discriminator="type")] | None
    properties: _Properties | None = None


class _Features(BaseModel):
    features: list[_Feature]

    def read(self) -> Annotations:
        found = Annotations("")
        for feature in self.features:
            classification = (feature.properties and feature.properties.classification) or _Classification()
            name = classification.name or ": ".join(classification.names)
            geometry = feature.geometry
            if geometry is None or isinstance(geometry, _NoArea) or name == _QUPATH_REGION:
                found.ignored[name if name == _QUPATH_REGION else geometry.type if geometry else "no geometry"] += 1
                continue
            polygons = [geometry.coordinates] if isinstance(geometry, _Polygon) else geometry.coordinates
            rings = [[to_array(ring) for ring in polygon] for polygon in polygons if polygon]
            found.add(Shape(IGNORE if name == _QUPATH_IGNORE else name, rings), geometry.type)
            if classification.color:
                found.colours[name] = classification.color
            elif classification.colorRGB is not None:
                found.colours[name] = tuple((classification.colorRGB & 0xFFFFFF).to_bytes(3))
        return found


class _Rle(BaseModel):
    """Run-length encoding of a bitmap: lengths of runs of 0 and 1 by turns, down the columns."""

    size: tuple[int, int]  # H, W
    counts: str | list[int]

    def decode(self) -> Mask:
        """The bitmap (H, W). Raises UserError. (pycocotools returns other memory for runs that are too short.)"""
        runs = _runs(self.counts) if isinstance(self.counts, str) else self.counts
        height, width = self.size
        if min(runs, default=0) < 0 or sum(runs) != height * width:
            found = "found a run-length encoding of more or fewer pixels"
            raise UserError(f"{found}; expected {width} x {height} = {height * width}")
        return (np.arange(len(runs)) % 2 == 1).repeat(runs).reshape(width, height).T  # type: ignore[no-any-return]


def _runs(text: str) -> list[int]:
    """Lengths of runs as COCO compresses them: 5 bits a character, least first, bit 6 while a number goes on; from the
    fourth run on the difference to the run before last."""
    runs: list[int] = []
    value = shift = 0
    for code in (ord(character) - 48 for character in text):
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code >> 4 & 1) << shift  # the sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


class _CocoImage(BaseModel):
    id: int | str
    file_name: str
    height: int | None = None
    width: int | None = None


class _CocoAnnotation(BaseModel):
    image_id: int | str
    category_id: int | str
    segmentation: list[list[Number]] | _Rle | None = None
    iscrowd: bool = False


class _CocoCategory(BaseModel):
    id: int | str
    name: str


class _Coco(BaseModel):
    images: list[_CocoImage]
    annotations: list[_CocoAnnotation]
    categories: list[_CocoCategory] = []

    def read(self) -> Coco:
        names = {category.id: category.name for category in self.categories}
        found = {image.id: Annotations(image.file_name, _size(image.height, image.width)) for image in self.images}
        for annotation in sorted(self.annotations, key=lambda each: not each.iscrowd):  # crowds lie below objects
            image, name = found.get(annotation.image_id), names.get(annotation.category_id)
            if image is None or name is None:
                ids = f"image {annotation.image_id} and category {annotation.category_id}"
                raise UserError(f"found an annotation of {ids}; expected both in its lists of images and categories")
            name = IGNORE if annotation.iscrowd else name
            match annotation.segmentation:
                case _Rle() as rle:
                    image.size = image.size or rle.size
                    if rle.size != image.size:
                        raise UserError(f"{image.image}: found a run-length encoding of {rle.size}, image {image.size}")
                    image.add(Shape(name, bitmap=rle.decode), "RLE")
                case [_, *_] as polygons if all(len(polygon) % 2 == 0 for polygon in polygons):
                    image.add(Shape(name, [[np.array(polygon).reshape(-1, 2)] for polygon in polygons]), "polygon")
                case [_, *_]:
                    raise UserError(f"{image.image}: found a polygon with an odd number of coordinates")
                case _:
                    image.ignored["box without an outline"] += 1
        return Coco([category.name for category in self.categories], list(found.values()))


def _size(height: int | None, width: int | None) -> tuple[int, int] | None:
    return (height, width) if height and width else None


def to_array(points: Ring) -> Array:
    return np.array(points, float).reshape(-1, 2)


def _png(text: str) -> Mask:
    """Bitmap (h, w) of a PNG in base64. Raises UserError."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise UserError(f"found a mask that is no base64 ({error})") from error
    page = imaging.read(data).pages[0]
    return np.asarray(page > 0) if page.ndim == 2 else np.asarray(page.any(axis=2))
