"""Ray Serve on two nodes of one core each: throughput with one replica and with two, and what a killed replica costs.

    PYTHONPATH=.:tests RAY_worker_niceness=0 python tests/benchmarks/cluster_serving.py model/best_model.pth

The first node, with Ray's proxy and controller, has the first core; the second has the other one, where the clients run
in both measurements. Each client sends its image again and again, and after a 503 waits as long as `Retry-After` says.
"""

import argparse
import http.client
import json
import os
import signal
import statistics
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from conftest import png
from ray_cluster import Servers
from test_cluster_serving import replicas

from trainer.data import sample


def ask(url: str, body: bytes, until: float) -> Counter[str]:
    """Answers until then: at once (200), or what a client saw instead, and what its retry brought."""
    found: Counter[str] = Counter()
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)

    def post() -> tuple[str, float]:
        try:
            connection.request("POST", "/segment", body)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return type(error).__name__, 0.0
        return str(answer.status), float(answer.headers.get("Retry-After", 0))

    while time.monotonic() < until:
        status, wait_s = post()
        found[status] += 1
        if status != "200":
            time.sleep(wait_s)
            found[f"{status}, then {post()[0]}"] += 1
    return found


def load(url: str, body: bytes, clients: int, seconds: float) -> Counter[str]:
    with ThreadPoolExecutor(clients) as pool:
        until = time.monotonic() + seconds
        return sum(pool.map(lambda _: ask(url, body, until), range(clients)), Counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--side", type=int, default=512, help="pixels (default: 512)")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement (default: 20)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs=2, default=[0, 1])
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    body = png(sample.generate(np.random.default_rng(0), size=options.side)[0])
    first, second = ({core} for core in options.cores)
    settings = {"model": options.model, "precision": options.precision}
    os.sched_setaffinity(0, first)  # for the processes of the node that is started now
    with tempfile.TemporaryDirectory() as folder:
        servers = Servers(Path(folder), n_nodes=1)
        os.sched_setaffinity(0, second)
        rates: dict[int, list[float]] = {}
        for n in (1, 2):
            if n == 2:
                servers.add_node()
            with servers.serve(options={"num_replicas": n}, **settings):
                load(servers.url, body, options.clients, 5)  # warm-up
                found = [load(servers.url, body, options.clients, options.seconds) for _ in range(options.repeats)]
                assert all(set(each) == {"200"} for each in found), found
                rates[n] = [each["200"] / options.seconds for each in found]
            shown = " ".join(f"{rate:.2f}" for rate in rates[n])
            print(f"{n} replicas: {statistics.median(rates[n]):.2f} images/s ({shown})", flush=True)
        ratio = statistics.median(rates[2]) / statistics.median(rates[1])
        print(f"2 replicas / 1: {ratio:.2f}", flush=True)
        victim = min(replicas())
        timer = threading.Timer(options.seconds / 2, lambda: os.kill(victim, signal.SIGKILL))
        timer.start()
        lost = load(servers.url, body, options.clients, options.seconds)
        timer.join()
        print(f"one of two replicas killed after {options.seconds / 2:g} s: {dict(lost)}", flush=True)
        servers.close()
    if options.json:
        options.json.write_text(json.dumps({"images/s": rates, "ratio": ratio, "killed": lost}))


if __name__ == "__main__":
    main()
