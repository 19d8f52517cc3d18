"""`unet-segment` against plain loops:  python tests/benchmarks/folder.py MODEL IMAGES [--json FILE]

Images per second of folders of masks, without the time to load the model, in one run and by turns:

    in process     unet-segment --model, against a loop of `imaging.read` and `Predictor.mask` that writes nothing
    service        unet-segment --url, against as many clients that post images and drop the answers

The ratios are those of the fastest rounds.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

from batch.engine import Stop
from batch.folder import OutFolder
from batch.inputs import Look
from batch.remote import CONCURRENCY
from batch.run import Segmentation
from batch.settings import SegmentSettings
from batch.work import Runner, opened
from unet import Predictor, imaging

ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--output", default="mask", help="of both sides of the service, %(default)s")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    images = [path for path in sorted(arguments.images.rglob("*")) if path.suffix.lower() in imaging.SUFFIXES]
    here, there = ({"paths": [str(arguments.images)], "output": [output]} for output in ("mask", arguments.output))
    predictor = Predictor.load(arguments.model)
    with serving(arguments.model) as url:
        local, remote = SegmentSettings(**here, model=arguments.model), SegmentSettings(**there, url=url)
        with opened(local, Stop()) as in_process, opened(remote, Stop()) as service:
            ways: dict[str, Callable[[], None]] = {
                "in process": lambda: segment(local, in_process),
                "  plain loop": lambda: loop(predictor, images),
                "service": lambda: segment(remote, service),
                "  plain clients": lambda: ask(url, images, arguments.output, CONCURRENCY),
            }
            best = dict.fromkeys(ways, 0.0)
            for _ in range(arguments.rounds + 1):  # the first warms up
                for name, way in ways.items():
                    started = time.perf_counter()
                    way()
                    rate = len(images) / (time.perf_counter() - started)
                    best[name] = max(best[name], rate)
    ratios = {
        "in process": best["in process"] / best["  plain loop"],
        "service": best["service"] / best["  plain clients"],
    }
    for name, rate in best.items():
        print(f"{name:16} {rate:8.4g} images/s" + (f"   {ratios[name]:.3f} of the plain one" if name in ratios else ""))
    if arguments.json:
        arguments.json.write_text(json.dumps({"images/s": best, "ratio": ratios}, indent=2) + "\n")


def segment(settings: SegmentSettings, runner: Runner) -> None:
    """As the program does it, in a new folder."""
    with tempfile.TemporaryDirectory() as out:
        settings = settings.model_copy(update={"out": Path(out)})
        with OutFolder.claim(settings) as folder:
            items = Look.at(settings.paths, folder.root, set()).items.values()
            segmentation = Segmentation(settings, runner, folder, Stop())
            segmentation.segment(list(items))
            assert not segmentation.failed


def loop(predictor: Predictor, images: list[Path]) -> None:
    for path in images:
        for page in imaging.read(path).pages:
            predictor.mask(page)


def ask(url: str, images: list[Path], output: str, n_clients: int) -> None:
    with httpx.Client(timeout=600) as client, ThreadPoolExecutor(n_clients) as threads:

        def post(path: Path) -> None:
            client.post(f"{url}/segment", params={"output": output}, content=path.read_bytes()).raise_for_status()

        list(threads.map(post, images))


@contextmanager
def serving(model: Path) -> Iterator[str]:
    """URL of a service of its own."""
    command = [sys.executable, "-m", "service", "--port", "0", "--model", str(model)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as service:
        assert service.stderr is not None
        url = next(found[1] for line in service.stderr if (found := re.search(r"listening on (http://\S+)", line)))
        try:
            yield url
        finally:
            service.terminate()


if __name__ == "__main__":
    main()
