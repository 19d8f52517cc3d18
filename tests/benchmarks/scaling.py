"""What a service of one core does, and what the simulation says of it:  python tests/benchmarks/scaling.py MODEL IMAGES

Needs simpy, of the extra `test`, and two cores: the service runs on the first, the clients on the last. Times requests
one after another, and puts what they take into `simulation.py`; then requests come at random times, at shares of the
rate that one core can answer, and beyond it. Prints what was measured beside what was simulated from requests that were
never together. `--plan` prints farms for 10^6 and 10^9 images a day instead, with bursts, a loss and a slow start.
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
from simulation import Cost, Farm, Machine, Outcome

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
        rows = []
        for share in SHARES:
            rate = share * capacity
            measured = asyncio.run(poisson(url, [post(file) for file in files], rate, arguments.seconds))
            simulated = Farm(Machine(), 1, costs).run(lambda _, rate=rate: rate, 20 * arguments.seconds)
            rows.append((share, arguments.seconds, measured, simulated))
    finally:
        server.terminate()
        server.wait()
    report(rows)


def timed(url: str, files: list[bytes], rounds: int, pid: int) -> list[Cost]:
    """What each request takes when it is alone: its stages as the service says, and what else its core does for it."""
    with httpx.Client(base_url=url) as client:
        client.post("/segment", content=files[0])  # the first is slower
        before, stages = cpu_s(pid), []
        for file in files * rounds:
            timing = client.post("/segment", content=file).raise_for_status().headers["server-timing"]
            parts = dict(part.split(";dur=") for part in timing.replace(" ", "").split(","))
            stages.append([float(parts[stage]) / 1000 for stage in STAGES])
        request_s = (cpu_s(pid) - before) / len(stages)
    means = [sum(column) / len(stages) for column in zip(*stages, strict=True)]
    http_s = max(0.0, request_s - sum(means))
    said = ", ".join(f"{stage} {1000 * mean:.2f}" for stage, mean in zip(STAGES, means, strict=True))
    print(f"alone, ms of one core: {said}, HTTP {1000 * http_s:.2f}; {1 / request_s:.1f} requests/s at most")
    sizes = [len(client_file) for client_file in files]
    print(f"upload {sum(sizes) / len(sizes) / 1000:.0f} kB")
    return [Cost(decode + http_s / 2, infer, encode + http_s / 2) for decode, infer, encode in stages]


async def poisson(url: str, requests: list[bytes], rate: float, seconds: float) -> Outcome:
    """Requests at random times, `rate` a second, whether or not earlier ones have been answered."""
    address, idle, found = httpx.URL(url), deque[Connection](), Outcome()
    chance = np.random.default_rng(0)

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

    started = due = time.perf_counter()
    tasks = []
    while (due := due + chance.exponential(1 / rate)) < started + seconds:
        await asyncio.sleep(max(0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(requests[chance.integers(len(requests))])))
    await asyncio.gather(*tasks)
    for connection in idle:
        await connection.__aexit__()
    return found


def report(rows: list[tuple[float, float, Outcome, Outcome]]) -> None:
    columns = ("answers/s", "mean ms", "p50 ms", "p95 ms", "refused %")
    print("load " + "".join(f"{column:>30}" for column in columns))
    print("     " + "".join(f"{'measured, simulated, ratio':>30}" for _ in columns))
    for share, _, measured, simulated in rows:
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
