"""Speed, memory and masks of two versions of this repository, measured by turns:

    python tests/benchmarks/floor.py --old PYTHON CHECKOUT --new PYTHON CHECKOUT --data FOLDER MODEL [MODEL ...]

PYTHON has the dependencies of its CHECKOUT, MODEL is a file of `unet-train`, FOLDER a data set with Training_Images.
The versions take turns of some seconds, in alternating order, so that what else the machine does slows down both. A
ratio is new / old, the median of the rounds: more is better for rates, less for times and memory.
"""

import argparse
import asyncio
import csv
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

CLIENTS, CROWD = 32, 200
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
Figures = dict[str, float]


class Version(NamedTuple):
    python: str
    checkout: str

    def start(self, *command: str | Path, **pipes: int) -> "subprocess.Popen[str]":
        environment = {**os.environ, "PYTHONPATH": str(Path(self.checkout).resolve())}
        return subprocess.Popen([self.python, *command], cwd=self.checkout, env=environment, text=True, **pipes)  # type: ignore[call-overload, no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--old", "--new"):
        parser.add_argument(name, nargs=2, required=True, metavar=("PYTHON", "CHECKOUT"))
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count() or 1], metavar="N")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="of the predictor, %(default)s")
    parser.add_argument("--service", action="store_true", help="requests/s, refusals, /health, memory, start")
    parser.add_argument("--training", action="store_true", help="crops/s of three epochs at base 16")
    arguments = parser.parse_args()
    old, new = Version(*arguments.old), Version(*arguments.new)
    images = sorted(path.resolve() for path in (arguments.data / "Training_Images").iterdir())
    for model in (path.resolve() for path in arguments.models):
        for precision, threads in product(("fp32", "bf16"), arguments.threads):
            print(f"\nPredictor, {model.parent.name}, {precision}, {threads} threads")
            compare_predictors([old, new], (str(model), precision, threads), images, arguments.rounds)
        if arguments.service:
            print(f"\nunet-serve, {model.parent.name}")
            show(by_turns(3, *(partial(service, each, model, images) for each in (old, new))))
    if arguments.training:
        print("\nunet-train")
        show(by_turns(2, *(partial(training, each, arguments.data.resolve()) for each in (old, new))))


def by_turns(rounds: int, old: Callable[[], Figures], new: Callable[[], Figures]) -> list[tuple[Figures, Figures]]:
    """Figures of both versions, for each round."""
    return [(old(), new()) if i % 2 else (new(), old())[::-1] for i in range(rounds)]


def show(rounds: list[tuple[Figures, Figures]]) -> None:
    print(f"{'':34}{'old':>10}{'new':>10}{'new / old':>12}")
    for name in rounds[0][0]:
        old, new = (statistics.median(figures[name] for figures in column) for column in zip(*rounds, strict=True))
        ratios = [after[name] / before[name] for before, after in rounds if before[name]]
        print(f"  {name:32}{old:10.4g}{new:10.4g}{statistics.median(ratios) if ratios else 1:12.3f}", flush=True)


def compare_predictors(versions: list[Version], task: tuple[Any, ...], images: list[Path], rounds: int) -> None:
    """Images/s and peak memory of `Predictor.mask` on the CPU, and the share of pixels whose masks differ."""
    with tempfile.TemporaryDirectory() as folder:
        masks = [str(Path(folder, f"{i}.npy")) for i in (0, 1)]
        arguments = [json.dumps([*task, out, [str(image) for image in images]]) for out in masks]
        workers = [
            version.start(Path(__file__).resolve(), "worker", each, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for version, each in zip(versions, arguments, strict=True)
        ]
        found = by_turns(rounds + 1, *(partial(turn, each) for each in workers))
        for process in workers:
            process.communicate()
        before, after = map(np.load, masks)
    show(found[1:])  # the first round warms up
    print(f"  pixels of {len(images)} masks that differ: {100 * (before != after).mean():.4f} %", flush=True)


def turn(worker: "subprocess.Popen[str]") -> Figures:
    print("go", file=worker.stdin, flush=True)
    return json.loads(worker.stdout.readline())  # type: ignore[no-any-return, union-attr]


def worker(model: str, precision: str, threads: int, out: str, paths: list[str]) -> None:
    """The process of one version: a turn of a second for each line of its standard input, then the masks."""
    import unet  # isort: skip  (before torch)
    import resource

    import cv2
    import torch

    torch.set_num_threads(threads)
    predictor = unet.Predictor.load(model, device="cpu", precision=precision)  # type: ignore[arg-type]
    images: list[Any] = [cv2.imread(path, cv2.IMREAD_UNCHANGED) for path in paths]
    for _ in sys.stdin:
        times: list[float] = []
        while len(times) < 2 or sum(times) < 1:
            began = time.perf_counter()
            predictor.mask(images[len(times) % len(images)])
            times.append(time.perf_counter() - began)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"images/s": 1 / sorted(times)[len(times) // 4], "peak MiB": peak}), flush=True)
    np.save(out, np.stack([predictor.mask(image) for image in images]))


def service(version: Version, model: Path, images: list[Path]) -> Figures:
    """`unet-serve` under two loads: clients that wait for their answers, and a crowd that is larger than the queue."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    head = "POST /segment HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: "
    posts = [f"{head}{len(file)}\r\n\r\n".encode() + file for file in (image.read_bytes() for image in images)]
    began = time.monotonic()
    server = version.start("-m", "service", "--model", model, "--port", str(port), "--device", "cpu", **QUIET)
    try:
        while asyncio.run(Connection(port).ask(posts[0]))[0] != 200:  # not listening yet, or the model is being loaded
            time.sleep(0.02)
        start_s = time.monotonic() - began
        few = asyncio.run(Load(port, posts).run(CLIENTS))
        many = asyncio.run(Load(port, posts).run(CROWD))
        peak = peak_mib(server.pid)
    finally:
        server.terminate()
        server.wait()
    refused, answers = many.statuses[503], few.statuses + many.statuses
    return {
        "start to first answer, s": start_s,
        f"requests/s, {CLIENTS} clients": few.rate,
        f"requests/s, {CROWD} clients": many.rate,
        "refused (503)": refused,
        "  with Retry-After, %": 100 * many.with_retry_after / max(1, refused),
        "  p99, ms": p99(many.refusals),
        "neither 200 nor 503": answers.total() - answers[200] - answers[503],
        f"/health p99, {CROWD} clients, ms": p99(many.health),
        "peak MiB": peak,
    }


class Load:
    """Clients that each post an image, wait for the answer and post the next; a refused one waits for Retry-After."""

    SECONDS = 5

    def __init__(self, port: int, posts: list[bytes]) -> None:
        self.port, self.posts = port, posts
        self.statuses: Counter[int] = Counter()
        self.with_retry_after = 0
        self.refusals, self.health = list[float](), list[float]()  # ms

    async def run(self, n_clients: int) -> "Load":
        began = self.last = time.perf_counter()
        self.end = began + self.SECONDS
        await asyncio.gather(self.probe(), *(self.client(i) for i in range(n_clients)))
        self.rate = self.statuses[200] / (self.last - began)
        return self

    async def client(self, index: int) -> None:
        connection = Connection(self.port)
        while (asked := time.perf_counter()) < self.end:
            status, retry_after = await connection.ask(self.posts[index % len(self.posts)])
            answered = time.perf_counter()
            self.statuses[status] += 1
            if status == 200:
                self.last = answered
            else:
                self.refusals.append(1000 * (answered - asked))
                self.with_retry_after += retry_after is not None
                await asyncio.sleep(min(retry_after or 1, max(0, self.end - answered)))

    async def probe(self) -> None:
        connection = Connection(self.port)
        while (asked := time.perf_counter()) < self.end:
            await connection.ask(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            self.health.append(1000 * (time.perf_counter() - asked))
            await asyncio.sleep(0.05)


class Connection:
    """A keep-alive connection with just enough HTTP: a real client library takes as long for a request as the service,
    and both share the cores."""

    def __init__(self, port: int) -> None:
        self.port, self.open = port, False

    async def ask(self, request: bytes) -> tuple[int, float | None]:
        """Status (0: the connection broke) and seconds of Retry-After."""
        try:
            if not self.open:
                self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
            self.writer.write(request)
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower().splitlines()
            headers = dict(line.split(": ", 1) for line in head[1:-1])
            await self.reader.readexactly(int(headers["content-length"]))
        except (OSError, asyncio.IncompleteReadError):
            self.open = False
            return 0, None
        self.open = headers.get("connection") != "close"
        return int(head[0].split()[1]), float(headers["retry-after"]) if "retry-after" in headers else None


def peak_mib(pid: int) -> float:
    """Most memory of a process, and of those that it has started (Linux)."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    peak_kib = Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0]
    return int(peak_kib) / 1024 + sum(peak_mib(int(child)) for child in children)


def p99(values: list[float]) -> float:
    return sorted(values)[99 * len(values) // 100] if values else 0.0


def training(version: Version, data: Path) -> Figures:
    """`unet-train` on the CPU; the first epoch is not counted."""
    with tempfile.TemporaryDirectory() as out:
        command = ["--data", str(data), "--out", out, "--base-channels", "16", "--epochs", "3", "--device", "cpu"]
        if version.start("-m", "trainer", *command, **QUIET).wait():
            raise SystemExit(f"{version.checkout}: unet-train {' '.join(command)} failed")
        with Path(out, "history.csv").open() as file:
            epochs = list(csv.DictReader(file))
    crops, seconds = (sum(float(each[name]) for each in epochs[1:]) for name in ("crops", "training_seconds"))
    return {"crops/s": crops / seconds, "score": float(epochs[-1]["score"])}


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(*json.loads(sys.argv[2]))
    else:
        main()
