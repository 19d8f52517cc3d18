"""Kind `geojson`: objects as polygons, a FeatureCollection (RFC 7946) in the form that QuPath 0.4 to 0.6 writes itself.

Objects are detections, as those of QuPath's own cell detection: it counts, measures and classifies detections inside
annotations, and stays fast with 100,000 of them. Annotations are for regions that are drawn and edited by hand.

Coordinates are in pixels from the image's corner: the first pixel reaches from 0 to 1. Areas under `measurements` are
those of the pixels. A polygon cuts corners (see `outlines`): its own area is 0.5 less, and 0.5 more for each hole.
"""

import json
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from unet.outputs.kind import Answer, Results
from unet.outputs.objects import of_pages
from unet.outputs.outlines import line_colours, outlines, place, vertices


def encode(results: Results) -> Answer:
    """Results of "objects" -> GeoJSON. Raises TooManyObjectsError."""
    legend, microns = results.legend, results.picture.metadata.micrometres
    named = zip(legend.class_names, line_colours(legend), strict=True)
    classes = [{"name": name, "color": colour} for name, colour in named]
    features = []
    for page, objects in zip(results.numbers, of_pages(results), strict=True):
        plane: dict[str, Any] = {}
        if results.n_in_file > 1:
            plane = {"plane": {"c": -1, "z": 0, "t": 0} | place(results, page)}  # c: all channels
        for i, rings in enumerate(outlines(objects.ids)):
            area = int(objects.area[i])
            measurements = {"Area px^2": area, "Mean probability": round(objects.probability[i], 4)}
            if microns:
                measurements["Area µm^2"] = float(f"{area * microns[0] * microns[1]:.7g}")
            properties = {
                "objectType": "detection",
                "name": str(i + 1),
                "classification": classes[objects.classes[i]],
                "measurements": measurements,
                "page": page,
            }
            coordinates = [vertices(ring).tolist() for ring in rings]
            geometry = {"type": "Polygon", "coordinates": coordinates} | plane
            text = json.dumps({"geometry": geometry, "properties": properties}, separators=(",", ":"))
            # as text at once: the coordinates of 50,000 objects take 20 times the memory as numbers. The same object
            # has the same id, so that QuPath notices what is imported twice
            features.append(f'{{"type":"Feature","id":"{uuid5(NAMESPACE_URL, text)}",{text[1:]}')
    lines = ",\n".join(features)
    return Answer(f'{{"type":"FeatureCollection","features":[\n{lines}\n]}}\n'.encode(), "application/geo+json")
