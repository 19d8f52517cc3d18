"""Content negotiation (RFC 9110, section 12): which kind of answer `Accept` asks for, and whether it may be gzip."""

from collections.abc import Mapping

from starlette.exceptions import HTTPException

from service import problems
from service.upload import BYTES
from unet.outputs import KINDS, Kind

ASKED_FOR = ("mask", "geojson", "table", "rois")
"""Kinds that a media type asks for where no `output` is given; of those that are equally welcome, the first."""
THERE = ", ".join(
    f"{' or '.join(types)} (output={' or '.join(name for name, kind in KINDS.items() if kind.media_types == types)})"
    for types in dict.fromkeys(kind.media_types for kind in KINDS.values())
)


def weights(header: str) -> dict[str, float]:
    """`text/csv;q=0.5, image/*` -> {"text/csv": 0.5, "image/*": 1.0}, in lower case; a weight that is none counts as
    1."""
    found: dict[str, float] = {}
    for element in header.lower().split(","):
        name, *parameters = (part.strip() for part in element.split(";"))
        weight = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        number = float(weight) if weight.replace(".", "", 1).isdecimal() else 1.0
        found |= {name: min(number, 1.0)} if name else {}
    return found


def quality(accepted: Mapping[str, float], media_type: str) -> float:
    """How welcome a media type is, 0 to 1, by the most specific range: `application/json` is one of GeoJSON's, and
    `application/octet-stream` of all."""
    kind = media_type.partition("/")[0]
    names = [media_type, *["application/json"] * media_type.endswith("+json"), f"{kind}/*", *BYTES, "*/*"]
    return next((accepted[name] for name in names if name in accepted), 0.0)


def choose(header: str, output: str | None) -> tuple[Kind, bool | None]:
    """The kind of answer, by `output` or else by the header, and whether an image shall be a TIFF; None: as the upload.
    Raises HTTPException, 406.

    - `Accept: image/png` and `image/tiff` choose the file of an image, too, but several pages, and more than 65,535
      ids, are a TIFF in any case: nothing else holds them, and `Content-Type` says so.
    - JSON alone contradicts no `output`: many clients, generated ones above all, send it with every request. Nor does
      `application/problem+json`, which is the type of errors, ask for anything.
    """
    accepted = {name: q for name, q in weights(header).items() if "/" in name and name != problems.MEDIA_TYPE}
    accepted = accepted or {"*/*": 1.0}

    def welcome(kind: Kind) -> float:
        return max(quality(accepted, media_type) for media_type in kind.media_types)

    kind = KINDS[output] if output else max((KINDS[name] for name in ASKED_FOR), key=welcome)
    json_alone = all(name.endswith(("/json", "+json")) for name in accepted) and any(accepted.values())
    if not welcome(kind) and not (output and json_alone):
        given = f" with output={output}" if output else ""
        raise HTTPException(406, f"Accept: expected {THERE}, found {header[:99]!r}{given}")
    png, tiff = (quality(accepted, media_type) for media_type in ("image/png", "image/tiff"))
    return kind, None if png == tiff else tiff > png


def takes_gzip(header: str) -> bool:
    """By `Accept-Encoding`."""
    accepted = weights(header)
    return accepted.get("gzip", accepted.get("*", 0.0)) > 0
