"""The service against the model alone:  python tests/benchmarks/serving.py MODEL DATA [--json FILE]

Starts `unet-serve`, then compares, in one run and by turns: the raw loop, the same predictor on the same images in as
many threads as the service has (on a GPU in its largest batches), without HTTP, files or a queue; and N clients that
each post an image, wait for the mask, and post the next. Prints requests per second, their share of the raw loop's,
times, refusals and memory, and CPU time per request, refusals included, beside that of the raw loop per image.
"""

import argparse
import asyncio
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

import cv2
import httpx

import unet.engines.process  # noqa: F401  isort: skip  (before torch)
import torch

from service.queue import BATCH_PIXELS, CUDA_THREADS, MAX_THREADS
from trainer.data import read_folder
from unet import Predictor
from unet.device import PrecisionChoice

ROUNDS = 3
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 200])
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement, %(default)s; there are three")
    parser.add_argument("--suffix", default=".png", help="what is sent: .png, or .bmp, which is decoded in no time")
    parser.add_argument("--precision", choices=get_args(PrecisionChoice), default="auto")
    parser.add_argument("--workers", type=int, default=1, help="processes of the service")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    images = [sample.image for sample in read_folder(arguments.data).samples]
    predictor = Predictor.load(arguments.model, precision=arguments.precision)
    command = [sys.executable, "-m", "service", "--model", str(arguments.model), "--port", "0"]
    command += ["--workers", str(arguments.workers), "--precision", arguments.precision]
    started = time.monotonic()
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        url = wait_for(server)
        answer = first(url, encoded(images[0], arguments.suffix))
        start_s = time.monotonic() - started
        ready = f'unet_model_reloads_total{{outcome="loaded"}} {arguments.workers}.0'
        while ready not in httpx.get(f"{url}/metrics").text:
            time.sleep(0.1)
        idle = memory(server.pid)
        rows = measure(predictor, images, url, server.pid, arguments)
    finally:
        server.terminate()
        server.wait()
    print(f"start to first answer {start_s:.1f} s ({answer}); idle {idle:.0f} MiB")
    print("              " + "".join(f"{column:>12}" for column in next(iter(rows.values()))))
    for name, row in rows.items():
        print(f"{name:>6} clients" + "".join(f"{value:>12.4g}" for value in row.values()))
    if arguments.json:
        known = {n: {name: value for name, value in row.items() if not math.isnan(value)} for n, row in rows.items()}
        arguments.json.write_text(json.dumps({"start_s": start_s, "idle MiB": idle, "rows": known}, indent=2) + "\n")


def measure(
    predictor: Predictor, images: list[Any], url: str, pid: int, arguments: argparse.Namespace
) -> dict[str, dict[str, float]]:
    requests = [post(encoded(image, arguments.suffix)) for image in images]
    raw: list[tuple[float, float]] = []
    found: dict[int, list[dict[str, Any]]] = {n: [] for n in arguments.clients}
    for _ in range(ROUNDS):
        for n in arguments.clients:
            raw.append(raw_loop(predictor, images, arguments.seconds))
            before = cpu_s(pid)
            each = loads(url, requests, n, arguments.seconds)
            found[n].append(each | {"rss": memory(pid), "cpu_s": cpu_s(pid) - before})
    rows = {}
    raw_rate, raw_cpu_s = (sum(column) / len(raw) for column in zip(*raw, strict=True))
    for n, rounds in found.items():
        times = sorted(t for each in rounds for t in each["times"])
        statuses = sum((each["statuses"] for each in rounds), Counter())
        health = sorted(t for each in rounds for t in each["health"])
        rate = sum(each["rate"] for each in rounds) / ROUNDS
        request_cpu_s = sum(each["cpu_s"] for each in rounds) / statuses[200]
        rows[str(n)] = {
            "requests/s": rate,
            "share of raw": rate / raw_rate,
            "p50 ms": 1000 * times[len(times) // 2],
            "p99 ms": 1000 * times[int(0.99 * len(times))],
            "ok": statuses[200],
            "503": statuses[503],
            "others": statuses.total() - statuses[200] - statuses[503],
            "503 p99 ms": 1000 * percentile(sorted(t for each in rounds for t in each["refused"]), 0.99),
            "health p99": 1000 * percentile(health, 0.99),
            "rss MiB": max(each["rss"] for each in rounds),
            "cpu ms": 1000 * request_cpu_s,
            "beside raw": 1000 * (request_cpu_s - raw_cpu_s),
        }
    return rows


def raw_loop(predictor: Predictor, images: list[Any], seconds: float) -> tuple[float, float]:
    """Images per second of the predictor alone, as many at a time as in the service, and CPU seconds per image."""
    on_gpu = predictor.device.type == "cuda"
    n_streams = CUDA_THREADS if on_gpu else min(torch.get_num_threads(), MAX_THREADS)
    n_threads = torch.get_num_threads() // n_streams
    batch = max(1, BATCH_PIXELS // math.prod(images[0].shape[:2])) if on_gpu else 1
    done, end = [0] * n_streams, time.perf_counter() + seconds

    def stream(index: int) -> None:
        torch.set_num_threads(n_threads)
        while time.perf_counter() < end:
            chosen = [images[(done[index] + i) % len(images)] for i in range(batch)]
            predictions = [predictor.start(image, "mask") for image in chosen]
            while not predictions[0].finished:
                predictor.compute([prediction.next() for prediction in predictions])
            done[index] += batch

    started, cpu_before = time.perf_counter(), time.process_time()
    threads = [threading.Thread(target=stream, args=(i,)) for i in range(n_streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - started), (time.process_time() - cpu_before) / sum(done)


def loads(url: str, requests: list[bytes], n_clients: int, seconds: float) -> dict[str, Any]:
    """`load` from several processes where there are cores for them, as one cannot keep a GPU busy; beside it `probe`
    in a process of its own."""
    n = max(1, min(n_clients // 8, (os.cpu_count() or 1) // 4))
    shares = [n_clients // n + (i < n_clients % n) for i in range(n)]
    with ProcessPoolExecutor(n + 1, get_context("fork")) as processes:
        health = processes.submit(_run, probe, url, seconds)
        running = [
            processes.submit(_run, load, url, requests[i:] + requests[:i], k, seconds) for i, k in enumerate(shares)
        ]
        parts = [each.result() for each in running]
    joined = {name: [t for part in parts for t in part[name]] for name in ("times", "refused")}
    statuses = sum((part["statuses"] for part in parts), Counter())
    rate = sum(part["rate"] for part in parts)
    return joined | {"rate": rate, "statuses": statuses, "health": health.result()}


def _run(work: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> Any:
    return asyncio.run(work(*arguments))


async def probe(url: str, seconds: float) -> list[float]:
    """Seconds that /health takes, measured twenty times a second."""
    times = []
    end = time.perf_counter() + seconds
    async with Connection(httpx.URL(url)) as connection:
        while (asked := time.perf_counter()) < end:
            await connection.ask(HEALTH)
            times.append(time.perf_counter() - asked)
            await asyncio.sleep(0.05)
    return times


async def load(url: str, requests: list[bytes], n_clients: int, seconds: float) -> dict[str, Any]:
    """N clients for some seconds; a refused client comes back after Retry-After."""
    times: list[float] = []
    refused: list[float] = []
    statuses: Counter[int] = Counter()
    address = httpx.URL(url)
    started = last = time.perf_counter()
    end = started + seconds

    async def client(index: int) -> None:
        nonlocal last
        request = requests[index % len(requests)]
        async with Connection(address) as connection:
            while (asked := time.perf_counter()) < end:
                status, retry_after = await connection.ask(request)
                now = time.perf_counter()
                statuses[status] += 1
                (times if status == 200 else refused).append(now - asked)
                if status == 200:
                    last = now
                else:
                    await asyncio.sleep(retry_after)

    await asyncio.gather(*(client(i) for i in range(n_clients)))
    print(f"{n_clients} clients: {dict(statuses)}", file=sys.stderr)
    return {
        "times": times,
        "rate": len(times) / (last - started) if times else 0.0,
        "statuses": statuses,
        "refused": refused,
    }


class Connection:
    """A keep-alive connection with just enough HTTP: client and service share the machine's cores, and a real client
    library takes as long for a request as the service."""

    def __init__(self, address: httpx.URL) -> None:
        self.address = address

    async def __aenter__(self) -> "Connection":
        self.reader, self.writer = await asyncio.open_connection(self.address.host, self.address.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    @property
    def ended(self) -> bool:
        """Whether the service has closed the connection."""
        return self.reader.at_eof()

    async def ask(self, request: bytes) -> tuple[int, float]:
        """Sends a request; returns the status and the seconds of Retry-After."""
        self.writer.write(request)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        headers = dict(line.split(": ", 1) for line in head.splitlines()[1:-1])
        if "content-length" in headers:
            await self.reader.readexactly(int(headers["content-length"]))
        else:  # chunked
            while size := int(await self.reader.readline(), 16):
                await self.reader.readexactly(size + 2)
            await self.reader.readline()
        if headers.get("connection") == "close":
            self.writer.close()
            await self.__aenter__()
        return int(head.split()[1]), float(headers.get("retry-after", 1))


def encoded(image: Any, suffix: str) -> bytes:
    """An image file; the order of colours does not matter here."""
    return bytes(cv2.imencode(suffix, image)[1])


def post(file: bytes) -> bytes:
    fields = f"Host: localhost\r\nContent-Type: application/octet-stream\r\nContent-Length: {len(file)}"
    return f"POST /segment HTTP/1.1\r\n{fields}\r\n\r\n".encode() + file


def first(url: str, file: bytes) -> int:
    while (answer := httpx.post(f"{url}/segment", content=file)).status_code == 503:
        time.sleep(0.01)
    return answer.status_code


def wait_for(server: "subprocess.Popen[str]") -> str:
    """The address that the program prints; the rest of its stderr is discarded."""
    assert server.stderr
    for line in server.stderr:
        if line.startswith("listening on "):
            threading.Thread(target=server.stderr.read, daemon=True).start()
            address = line.split()[-1]
            while True:
                try:
                    httpx.get(f"{address}/health/live")
                    return address
                except httpx.TransportError:
                    time.sleep(0.01)
    raise SystemExit("unet-serve did not start")


def memory(pid: int) -> float:
    """Resident memory in MiB, of a process and its children."""
    status = Path(f"/proc/{pid}/status").read_text()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024 + sum(memory(int(child)) for child in children)


def cpu_s(pid: int) -> float:
    """CPU seconds so far, of a process and its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK") + sum(cpu_s(int(child)) for child in children)


def percentile(ordered: list[float], share: float) -> float:
    return ordered[int(share * len(ordered))] if ordered else float("nan")


if __name__ == "__main__":
    main()
