"""What a service of one core does, and what the simulation says of it:  python tests/benchmarks/scaling.py MODEL IMAGES

Needs simpy, of the extra `test`, and two cores: the service runs on the first, the clients on the last. Times requests
one after another, and puts what they take into `simulation.py`; then requests come at random times, at shares of the
rate that one core can answer, and beyond it. Prints what was measured beside what was simulated for the same times,
from what requests take that were never together.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import httpx
import numpy as np
from serving import Connection, cpu_s, percentile, post, wait_for
from simulation import Cost, Farm, Machine, Outcome, at_random

from service.settings import ServeSettings

SHARES = (0.3, 0.6, 0.8, 0.9, 1.5)
STAGES = ("decode", "infer", "encode")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path, help="folder of images that are sent as they are")
    parser.add_argument("--seconds", type=float, default=30, help="of each rate (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="how often one after another is timed (%(default)s)")
    arguments = parser.parse_args()
    files = [path.read_bytes() for path in sorted(arguments.images.iterdir())]
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0]})
    command = [sys.executable, "-m", "service", "--model", str(arguments.model), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    os.sched_setaffinity(0, {cores[-1]})
    try:
        url = wait_for(server)
        costs = timed(url, files, arguments.rounds, server.pid)
        capacity = len(costs) / sum(cost.before + cost.compute + cost.after for cost in costs)
        requests = dict(zip(costs, map(post, files), strict=True))
        machine = Machine(max_in_flight=ServeSettings().max_in_flight)
        rows = []
        for share in SHARES:
            arrivals = list(at_random(lambda _, share=share: share * capacity, arguments.seconds, costs))
            measured = asyncio.run(replay(url, [(time, requests[cost]) for time, cost in arrivals]))
            rows.append((share, measured, Farm(machine, 1).run(arrivals)))
    finally:
        server.terminate()
        server.wait()
    report(rows)


def timed(url: str, files: list[bytes], rounds: int, pid: int) -> list[Cost]:
    """What each request takes when it is alone: its stages as the service says, and what else its core does for it."""
    with httpx.Client(base_url=url) as client:
        client.post("/segment", content=files[0])  # the first is slower
        before = cpu_s(pid)
        each = [[_stages(client, file) for file in files] for _ in range(rounds)]
        request_s = (cpu_s(pid) - before) / (rounds * len(files))
    stages = np.mean(each, axis=0)  # (files, stages)
    means = stages.mean(axis=0)
    http_s = max(0.0, request_s - sum(means))
    said = ", ".join(f"{stage} {1000 * mean:.2f}" for stage, mean in zip(STAGES, means, strict=True))
    print(f"alone, ms of one core: {said}, HTTP {1000 * http_s:.2f}; {1 / request_s:.1f} requests/s at most")
    print(f"upload {np.mean([len(file) for file in files]) / 1000:.0f} kB")
    return [Cost(decode + http_s / 2, infer, encode + http_s / 2) for decode, infer, encode in stages]


def _stages(client: httpx.Client, file: bytes) -> list[float]:
    timing = client.post("/segment", content=file).raise_for_status().headers["server-timing"]
    parts = dict(part.split(";dur=") for part in timing.replace(" ", "").split(","))
    return [float(parts[stage]) / 1000 for stage in STAGES]


async def replay(url: str, arrivals: list[tuple[float, bytes]]) -> Outcome:
    """Requests at these times, whether or not earlier ones have been answered."""
    address, idle, found = httpx.URL(url), deque[Connection](), Outcome()

    async def ask(request: bytes) -> None:
        while idle and idle[0].ended:
            await idle.popleft().__aexit__()
        connection = idle.popleft() if idle else await Connection(address).__aenter__()
        asked = time.perf_counter()
        status, _ = await connection.ask(request)
        now = time.perf_counter()
        if status == 200:
            found.latencies.append(now - asked)
            found.last = now - started
        else:
            found.refused += 1
        idle.append(connection)

    started = time.perf_counter()
    tasks = []
    for due, request in arrivals:
        await asyncio.sleep(max(0, started + due - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(request)))
    await asyncio.gather(*tasks)
    for connection in idle:
        await connection.__aexit__()
    return found


def report(rows: list[tuple[float, Outcome, Outcome]]) -> None:
    columns = ("answers/s", "mean ms", "p50 ms", "p95 ms", "refused %")
    print("load " + "".join(f"{column:>30}" for column in columns))
    print("     " + "".join(f"{'measured, simulated, ratio':>30}" for _ in columns))
    for share, measured, simulated in rows:
        cells = []
        for a, b in zip(figures(measured), figures(simulated), strict=True):
            cells.append(f"{a:10.1f}{b:10.1f}{b / a if a else float('nan'):10.2f}")
        print(f"{share:4.1f} " + "".join(cells))


def figures(found: Outcome) -> tuple[float, ...]:
    times = sorted(found.latencies)
    mean = sum(times) / len(times)
    refused = found.refused / (found.refused + len(times))
    p50, p95 = (1000 * percentile(times, share) for share in (0.5, 0.95))
    return len(times) / found.last, 1000 * mean, p50, p95, 100 * refused


if __name__ == "__main__":
    main()
