"""Damaged image files against the decoders.

    python tests/benchmarks/fuzz.py [--inputs 100000] [--seed 0] [--json FILE]
    python tests/benchmarks/fuzz.py --only NUMBER [--save FILE]

Small valid files of every kind are damaged at random and given to `unet.imaging` with the service's limits, in a
process of its own with bounded memory: one that dies or hangs is noticed, named and replaced. What decodes is decoded
again in memory that held another byte: uninitialised pixels would differ. Each input follows from `--seed` and its
number alone; `--only NUMBER --save FILE` writes one. Exit status 1 for anything but an image or an ImageError.
"""

import argparse
import ctypes
import json
import multiprocessing
import random
import resource
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from unet.imaging import ImageError, ImageTooLargeError, Limits, measure, read

LIMITS = Limits(max_bytes=2**26, max_pixels=2**24, max_pages=64)  # below the service's defaults, to be quick
ADDRESS_SPACE = 2**31
"""Bytes that a worker may take beyond what it has at its start."""
HANG_S = 20.0
_M_PERTURB = -6  # malloc.h of glibc
WARM_UP = 1000
"""Inputs before the first look at the memory."""
PIXEL_BYTES, SPARE_KIB = 3 * 16, 2**16
"""Memory that an input may take: for each pixel that `measure` counts (16 bytes and two copies), and beside."""

GREY = cv2.resize(np.arange(30, 250, 5, dtype=np.uint8).reshape(4, 11), (37, 23), interpolation=cv2.INTER_CUBIC)
RGB = np.stack([GREY, GREY[::-1], 255 - GREY], axis=2)


def seeds() -> dict[str, bytes]:
    """Valid files by name: every format, in each kind that has code of its own in a decoder."""

    def pil(image: Image.Image, kind: str, **options: Any) -> bytes:
        file = BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    def tiff(*pages: Any, **options: Any) -> bytes:
        file = BytesIO()
        with tifffile.TiffWriter(
            file, bigtiff=options.pop("bigtiff", False), byteorder=options.pop("order", "<")
        ) as writer:
            for page in pages:
                writer.write(page, metadata=None, **options)
        return file.getvalue()

    def described(pages: Any, *, ome: bool = False, imagej: bool = False, **options: Any) -> bytes:
        file = BytesIO()
        tifffile.imwrite(file, pages, ome=ome, imagej=imagej, photometric="minisblack", **options)
        return file.getvalue()

    stack = np.stack([GREY] * 6).reshape(3, 2, *GREY.shape)  # Z, C
    grey, rgb = Image.fromarray(GREY), Image.fromarray(RGB)
    bits, deep = Image.fromarray(GREY > 120), Image.fromarray(GREY.astype(np.uint16) * 257)
    palette, alpha = rgb.quantize(16), rgb.copy()
    alpha.putalpha(grey)
    turned = Image.Exif()
    turned[0x112] = 6
    frames = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
    return {
        "png": pil(rgb, "PNG"),
        "png-grey-exif": pil(grey, "PNG", exif=turned),
        "png-1": pil(bits, "PNG"),
        "png-16": pil(deep, "PNG"),
        "png-palette-alpha": pil(palette, "PNG", transparency=bytes(range(0, 256, 16))),
        "png-alpha": pil(alpha, "PNG"),
        "png-animated": pil(rgb, "PNG", **frames),
        "jpeg": pil(rgb, "JPEG"),
        "jpeg-grey-exif": pil(grey, "JPEG", exif=turned),
        "jpeg-progressive": pil(rgb, "JPEG", progressive=True),
        "jpeg-cmyk": pil(rgb.convert("CMYK"), "JPEG"),
        "jpeg-restart": pil(rgb, "JPEG", restart_marker_blocks=1),
        "gif": pil(palette, "GIF"),
        "gif-animated": pil(palette, "GIF", **frames),
        "tiff": tiff(RGB),
        "tiff-float": tiff(GREY.astype(np.float32) / 255),
        "tiff-half": tiff(GREY.astype(np.float16), compression="zlib", predictor=True),
        "tiff-16": tiff(RGB.astype(np.uint16) * 257, order=">"),
        "tiff-signed": tiff(GREY.astype(np.int16) - 99, compression="lzw", predictor=True),
        "tiff-bands": tiff(np.dstack([RGB, RGB]), photometric="minisblack", planarconfig="contig"),
        "tiff-alpha": tiff(np.dstack([RGB, GREY]), photometric="rgb", extrasamples=["unassalpha"], compression="lzw"),
        "tiff-white": tiff(GREY, photometric="miniswhite"),
        "tiff-12": tiff(GREY.astype(np.uint16), bitspersample=12),
        "tiff-tiles": tiff(GREY, tile=(16, 16), compression="zlib"),
        "tiff-big": tiff(GREY, bigtiff=True, rowsperstrip=4),
        "tiff-pages": tiff(GREY, RGB, GREY[:5]),
        "tiff-planar": tiff(np.moveaxis(RGB, 2, 0), photometric="rgb", planarconfig="separate"),
        "tiff-palette": pil(palette, "TIFF"),
        "tiff-turned": pil(grey, "TIFF", exif=turned),
        "tiff-shaped": described(stack, metadata={"axes": "ZCYX"}, compression="zlib"),
        "tiff-shaped-one": described(stack, metadata={"axes": "ZCYX"}),
        "tiff-imagej": described(stack, imagej=True, metadata={"axes": "ZCYX", "spacing": 2.0, "unit": "um"}),
        "tiff-imagej-lzw": described(stack, imagej=True, metadata={"axes": "ZCYX"}, compression="lzw"),
        "tiff-imagej-labels": described(
            stack.astype(np.uint16), imagej=True, metadata={"axes": "ZCYX", "Labels": list("abcdef")}
        ),
        "tiff-two-descriptions": described(stack.astype(np.uint16), metadata={"axes": "ZCYX"}, description="cells"),
        "tiff-volume": tiff(stack[:, 0], volumetric=True, tile=(16, 16, 16), photometric="minisblack"),
        "tiff-nodata": tiff(GREY, extratags=[(42113, "s", 0, "100", True)]),
        "tiff-names": tiff(GREY, GREY, extratags=[(285, "s", 0, "a slice", True)]),
        "tiff-cmyk": pil(rgb.convert("CMYK"), "TIFF"),
        "tiff-jpeg2000": tiff(RGB, compression="jpeg2000"),
        "tiff-ome": described(stack, ome=True, metadata={"axes": "ZCYX", "PhysicalSizeX": 0.5}),
        "tiff-ome-tiles": described(stack, ome=True, metadata={"axes": "ZCYX"}, tile=(16, 16), compression="zstd"),
        "tiff-jpeg-tiles": tiff(RGB, tile=(16, 16), compression="jpeg", photometric="ycbcr"),
        **{f"tiff-{name}": tiff(RGB, compression=name) for name in ("lzma", "zstd", "webp", "packbits")},
        **{
            f"tiff-{name}": pil(image, "TIFF", compression=name)
            for name, image in [
                ("tiff_lzw", rgb),
                ("tiff_adobe_deflate", deep),
                ("jpeg", rgb),
                ("group3", bits),
                ("group4", bits),
            ]
        },
        "bmp": pil(rgb, "BMP"),
        "bmp-palette": pil(palette, "BMP"),
        "bmp-1": pil(bits, "BMP"),
        "bmp-alpha": pil(alpha, "BMP"),
        "bmp-rle": _run_lengths(GREY),
        "jp2": pil(rgb, "JPEG2000"),
        "jp2-alpha": pil(alpha, "JPEG2000"),
        "j2k": imagecodecs.jpeg2k_encode(GREY, reversible=True, codecformat="j2k"),
        "j2k-bands": imagecodecs.jpeg2k_encode(np.dstack([RGB, RGB]).astype(np.uint16), codecformat="j2k"),
        "j2k-tiles": pil(
            rgb, "JPEG2000", no_jp2=True, tile_size=(16, 16), precinct_size=(32, 32), quality_layers=[9, 2]
        ),
        "webp": pil(rgb, "WEBP"),
        "webp-lossless": pil(rgb, "WEBP", lossless=True),
        "webp-alpha-exif": pil(alpha, "WEBP", exif=turned),
        "webp-animated": pil(rgb, "WEBP", **frames),
    }


def _run_lengths(image: Any) -> bytes:
    """An 8-bit BMP with run lengths, which no library here writes."""
    rows = b"".join(b"".join(bytes([1, value]) for value in row.tolist()) + b"\0\0" for row in image[::-1]) + b"\0\1"
    palette = b"".join(bytes([i, i, i, 0]) for i in range(256))
    height, width = image.shape
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(rows), 0, 0, 256, 0)
    start = 14 + len(info) + len(palette)
    return struct.pack("<2sIHHI", b"BM", start + len(rows), 0, 0, start) + info + palette + rows


def damaged(seed: int, number: int, whole: dict[str, bytes]) -> tuple[str, bytes]:
    """Name and bytes of one of the files with one to four damages. The checksums of a PNG are mostly mended."""
    rng = random.Random(f"{seed} {number}")  # noqa: S311  (no secret)
    name = rng.choice(list(whole))
    data = bytearray(whole[name])
    for _ in range(rng.randint(1, 4)):
        rng.choice(_DAMAGES)(rng, data, rng.choice(list(whole.values())))
    if name.startswith("png") and rng.random() < 0.9:
        _fix_checksums(data)
    return name, bytes(data)


Damage = Callable[[random.Random, bytearray, bytes], None]


def _somewhere(rng: random.Random, data: bytearray) -> int:
    """A position, mostly in the header."""
    return rng.randrange(min(len(data), rng.choice([64, 256, 1 << 30])) + 1)


def _flip_bits(rng: random.Random, data: bytearray, _: bytes) -> None:
    for _i in range(rng.choice([1, 1, 4, 32])):
        at = _somewhere(rng, data)
        data[at : at + 1] = bytes(byte ^ 1 << rng.randrange(8) for byte in data[at : at + 1])


def _write_number(rng: random.Random, data: bytearray, _: bytes) -> None:
    number = rng.choice([0, 1, 2, 3, 8, 16, 255, 256, 4096, 32767, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1])
    kind = rng.choice(["<B", "<H", ">H", "<I", ">I"])
    packed = struct.pack(kind, number % 2 ** (8 * struct.calcsize(kind)))
    at = _somewhere(rng, data)
    data[at : at + len(packed)] = packed


def _write_run(rng: random.Random, data: bytearray, _: bytes) -> None:
    at, length = _somewhere(rng, data), rng.randint(1, 64)
    data[at : at + length] = rng.choice([bytes(length), b"\xff" * length, rng.randbytes(length)])


def _remove(rng: random.Random, data: bytearray, _: bytes) -> None:
    at = _somewhere(rng, data)
    del data[at : at + rng.randint(1, 64)]


def _repeat(rng: random.Random, data: bytearray, _: bytes) -> None:
    at, length = _somewhere(rng, data), rng.randint(1, 64)
    data[at:at] = data[at : at + length] * rng.choice([1, 2, 100])


def _truncate(rng: random.Random, data: bytearray, _: bytes) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _splice(rng: random.Random, data: bytearray, other: bytes) -> None:
    at, start = _somewhere(rng, data), rng.randrange(len(other))
    data[at:] = other[start:]


_DAMAGES: list[Damage] = [
    *[_flip_bits, _write_number, _write_number, _write_number],
    *[_write_run, _remove, _repeat, _truncate, _splice],
]


def _fix_checksums(data: bytearray) -> None:
    at = 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        if end + 4 > len(data):
            return
        data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4)
        at = end + 4


def attempt(data: bytes) -> str:
    """What became of an input. Raises AssertionError for memory beyond what `measure` counted."""
    before, n_pixels = _peak(), 0
    try:
        n_pixels = measure(data, LIMITS)
        pages = read(data, LIMITS).pages
        outcome = "decoded"
        assert 0 < sum(page.shape[0] * page.shape[1] for page in pages) <= n_pixels <= 2**24
    except ImageTooLargeError:
        outcome = "too large"
    except ImageError:
        outcome = "refused"
    taken = _peak() - before
    assert taken <= n_pixels * PIXEL_BYTES // 1024 + SPARE_KIB, f"{taken} KiB taken for {n_pixels} pixels"
    return outcome


def _peak() -> int:
    """Largest resident memory of this process so far, KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def check_written(data: bytes) -> None:
    """Decodes twice, in memory that glibc has filled with another byte. Raises AssertionError where that shows."""
    if measure(data, LIMITS) > 2**18:
        return  # no other code decodes them, and large blocks come zeroed from the system
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: None)
    found = []
    for held in (0x5A, 0xA5):
        mallopt(_M_PERTURB, held)
        try:
            found.append([page.tobytes() for page in read(data).pages])
        finally:
            mallopt(_M_PERTURB, 0)
    assert found[0] == found[1], "uninitialised pixels"


def _work(whole: dict[str, bytes], seed: int, first: int, last: int, at: "Synchronized[int]", results: Any) -> None:
    """A worker process: tries inputs and keeps the number of the current one in `at`."""
    counts: Counter[str] = Counter()
    slowest, before = (0.0, 0), 0
    bound = 1024 * _status("VmSize") + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    for number in range(first, last):
        at.value = number
        if number == first + WARM_UP:
            before = _status("VmRSS")
        _, data = damaged(seed, number, whole)
        started = time.perf_counter()
        try:
            outcome = attempt(data)
            slowest = max(slowest, (1000 * (time.perf_counter() - started), number))
            if outcome == "decoded":
                check_written(data)
        except BaseException as error:
            print(f"input {number}: {error!r}", file=sys.stderr)
            outcome = "errors"
        counts[outcome] += 1
        if number % 1000 == 999 or number == last - 1:
            results.send((dict(counts), slowest, before, _status("VmRSS")))
            counts.clear()


def _status(name: str) -> int:
    """A figure of this process, KiB."""
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0])


def run(inputs: int, seed: int = 0, hang_s: float = HANG_S) -> dict[str, Any]:
    """The report. A process that dies takes the counts since its last thousand with it."""
    whole = seeds()
    context = multiprocessing.get_context("spawn")
    at = context.Value("l", 0)
    report: dict[str, Any] = dict.fromkeys(["decoded", "refused", "too large", "errors", "crashes", "hangs"], 0)
    report |= {"inputs": inputs, "slowest ms": 0.0, "slowest input": 0, "RSS MiB at first": 0, "RSS MiB at last": 0}
    first = 0
    while first < inputs:
        receiver, sender = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(whole, seed, first, inputs, at, sender), daemon=True)
        worker.start()
        sender.close()
        first = inputs if _watch(worker, receiver, at, report, hang_s) else at.value + 1
    return report


def _watch(worker: Any, receiver: Any, at: "Synchronized[int]", report: dict[str, Any], hang_s: float) -> bool:
    """Waits until the process ends. Returns whether it finished its inputs."""
    seen, since = -1, time.monotonic()
    while True:
        try:
            while receiver.poll(1):
                counts, (slowest, number), before, now = receiver.recv()
                for name, count in counts.items():
                    report[name] += count
                if slowest > report["slowest ms"]:
                    report |= {"slowest ms": round(slowest, 1), "slowest input": number}
                report |= {"RSS MiB at first": before // 1024, "RSS MiB at last": now // 1024}
        except EOFError:
            worker.join()
            if worker.exitcode:
                print(f"input {at.value}: the process died with {worker.exitcode}", file=sys.stderr)
                report["crashes"] += 1
            return not worker.exitcode
        if at.value != seen:
            seen, since = at.value, time.monotonic()
        elif time.monotonic() - since > hang_s:
            print(f"input {seen}: not finished in {hang_s:g} s", file=sys.stderr)
            report["hangs"] += 1
            worker.kill()
            worker.join()
            return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.only is not None:
        name, data = damaged(arguments.seed, arguments.only, seeds())
        if arguments.save:
            arguments.save.write_bytes(data)
        print(name, len(data), attempt(data))
        return 0
    started = time.perf_counter()
    report = run(arguments.inputs, arguments.seed)
    report["seconds"] = round(time.perf_counter() - started, 1)
    for name, value in report.items():
        print(f"{name:16} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return int(any(report[name] for name in ("errors", "crashes", "hangs")))


if __name__ == "__main__":
    sys.exit(main())
