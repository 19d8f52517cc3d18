"""Twice as many requests as the service can answer:  python tests/benchmarks/overload.py MODEL DATA [--json FILE]

First finds the capacity, with eight clients that each wait for their answer; then sends requests at twice that rate
whether or not earlier ones have been answered, in squares cut from the images of DATA. Prints what came of them, and
what the service's process held after each tenth of them; growth is from the first tenth to the last.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

import httpx
from serving import Connection, load, memory, percentile, post, wait_for

from service.settings import ServeSettings
from trainer.data import read_folder
from unet.imaging import write_png

CLIENTS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=512, help="of the squares, pixels (%(default)s)")
    parser.add_argument("--seconds", type=float, default=10, help="of finding the capacity")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    side = arguments.side
    requests = [post(write_png(sample.image[:side, :side])) for sample in read_folder(arguments.data).samples]
    command = [sys.executable, "-m", "service", "--model", str(arguments.model), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        url = wait_for(server)
        for n_clients in (1, CLIENTS):  # warm: a prediction that is alone starts a thread for each core
            asyncio.run(load(url, requests, n_clients, arguments.seconds / 5))
        before = asyncio.run(load(url, requests, CLIENTS, arguments.seconds))["rate"]
        held = holds(server.pid)
        found = asyncio.run(flood(url, requests, arguments.requests, 2 * before, server.pid))
        after = asyncio.run(load(url, requests, CLIENTS, arguments.seconds))["rate"]
        more = {name: number - held[name] for name, number in holds(server.pid).items()}
    finally:
        server.terminate()
        server.wait()
    capacity = (before + after) / 2  # what else the machine does changes with time
    queue_s = ServeSettings().max_in_flight / capacity
    row = {
        "requests": arguments.requests,
        "capacity/s": capacity,
        "goodput": len(found["times"]) / found["seconds"] / capacity,
        "p50 s": percentile(found["times"], 0.5),
        "p99 s": percentile(found["times"], 0.99),
        "queue / rate s": queue_s,
        "200": found["statuses"][200],
        "503": found["statuses"][503],
        "others": found["statuses"].total() - found["statuses"][200] - found["statuses"][503],
        "503 p99 ms": 1000 * percentile(found["refused"], 0.99),
        "rss growth %": 100 * (found["rss"][-1] / found["rss"][0] - 1),
        "more files": more["files"],
        "more threads": more["threads"],
    }
    for name, value in row.items():
        print(f"{name:16}{value:12.4g}")
    print("rss MiB, tenth by tenth:", *found["rss"])
    if arguments.json:
        arguments.json.write_text(json.dumps(row | {"rss MiB": found["rss"]}, indent=2) + "\n")


async def flood(url: str, requests: list[bytes], n: int, rate: float, pid: int) -> dict[str, Any]:
    """`n` requests at `rate` a second, each on an idle connection."""
    address = httpx.URL(url)
    idle: deque[Connection] = deque()
    times: list[float] = []
    refused: list[float] = []
    statuses: Counter[int] = Counter()

    async def ask(index: int) -> None:
        while idle and idle[0].ended:
            await idle.popleft().__aexit__()
        # by turns, so that none is idle until the service closes it
        connection = idle.popleft() if idle else await Connection(address).__aenter__()
        asked = time.perf_counter()
        status, _ = await connection.ask(requests[index % len(requests)])
        statuses[status] += 1
        (times if status == 200 else refused).append(time.perf_counter() - asked)
        idle.append(connection)

    started = time.perf_counter()
    tasks = []
    rss = []
    for i in range(n):
        await asyncio.sleep(max(0, started + i / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(i)))
        if 10 * (i + 1) // n > len(rss):
            rss.append(round(memory(pid), 1))
    await asyncio.gather(*tasks)
    seconds = time.perf_counter() - started
    for connection in idle:
        await connection.__aexit__()
    return {
        "times": sorted(times),
        "refused": sorted(refused),
        "statuses": statuses,
        "seconds": seconds,
        "rss": rss,
    }


def holds(pid: int) -> dict[str, int]:
    """Open files and threads of a process, when they no longer change."""
    process, before, now = Path(f"/proc/{pid}"), None, {"files": -1, "threads": -1}
    while now != before:
        before = now
        time.sleep(0.3)
        now = {"files": len(list((process / "fd").iterdir())), "threads": len(list((process / "task").iterdir()))}
    return now


if __name__ == "__main__":
    main()
