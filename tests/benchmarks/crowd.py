"""Many large images at once:  python tests/benchmarks/crowd.py MODEL [--side 4096] [--clients 31] [--tta] [--json FILE]

Stripes in colour, which make a PNG of 54 KB at 4096 x 4096. Prints the statuses of the answers, the service's memory
before and at most, and how long a small image and `/health` take meanwhile.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from serving import HEALTH, Connection, encoded, first, memory, post, wait_for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--clients", type=int, default=31)
    parser.add_argument("--tta", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    image = np.zeros((arguments.side, arguments.side, 3), np.uint8)
    image[::64] = 200
    large = post(encoded(image, ".png"))
    if arguments.tta:
        large = large.replace(b"/segment", b"/segment?tta=1", 1)
    small = encoded(image[:64, :64], ".png")
    command = [sys.executable, "-m", "service", "--model", str(arguments.model), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        url = wait_for(server)
        first(url, small)
        idle = memory(server.pid)
        found = asyncio.run(crowd(httpx.URL(url), large, post(small), arguments.clients, server.pid))
    finally:
        server.terminate()
        server.wait()
    row = {"clients": arguments.clients, "upload KB": len(large) / 1000, "idle MiB": idle, **found}
    for name, value in row.items():
        print(f"{name:16}{value:12.4g}")
    if arguments.json:
        arguments.json.write_text(json.dumps(row, indent=2) + "\n")


async def crowd(address: httpx.URL, large: bytes, small: bytes, n_clients: int, pid: int) -> dict[str, Any]:
    statuses: Counter[int] = Counter()
    peak = 0.0
    times: dict[bytes, list[float]] = {small: [], HEALTH: []}

    async def client() -> None:
        async with Connection(address) as connection:
            status, _ = await connection.ask(large)
            statuses[status] += 1

    clients = [asyncio.create_task(client()) for _ in range(n_clients)]
    async with Connection(address) as connection:
        while statuses.total() < n_clients:
            for request, of in times.items():
                asked = time.perf_counter()
                status, _ = await connection.ask(request)
                if status == 200:
                    of.append(time.perf_counter() - asked)
            peak = max(peak, memory(pid))
            await asyncio.sleep(0.1)
    await asyncio.gather(*clients)
    return {
        **{str(status): statuses[status] for status in (200, 503, 504)},
        "others": sum(n for status, n in statuses.items() if status not in (200, 503, 504)),
        "peak MiB": peak,
        "small, worst s": max(times[small]),
        "health, worst s": max(times[HEALTH]),
    }


if __name__ == "__main__":
    main()
