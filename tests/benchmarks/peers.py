"""The service beside others that serve the same predictor:

    pip install '.[train,serve,peers]' && python tests/benchmarks/peers.py MODEL DATA [--json FILE]

By turns, for each that is installed: start it, let N clients post the images of DATA, each one waiting for its mask
before the next, and stop it. LitServe, BentoML and Ray Serve get as many processes of one thread as `unet-serve` has
streams. Prints requests per second, their share of the raw loop's (see serving.py), times, memory of all processes.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from serving import load, percentile, post, raw_loop

from trainer.data import read_folder
from unet import Predictor
from unet.images import encode_png

FOLDER = Path(__file__).parent / "peers"
START_S = 120
PEERS: dict[str, tuple[str, list[str]]] = {
    # what has to be installed; the command, in FOLDER
    "unet-serve": ("uvicorn", [sys.executable, "-m", "service", "--model", "MODEL", "--port", "PORT"]),
    "LitServe": ("litserve", [sys.executable, "litserve_app.py", "MODEL", "PORT"]),
    "BentoML": ("bentoml", [sys.executable, "-m", "bentoml", "serve", "bentoml_app:Unet", "--port", "PORT"]),
    "Ray Serve": ("ray", [sys.executable, "ray_app.py", "MODEL", "PORT"]),
}
WANT_FORMS = {"LitServe"}
"""What reads a body only as a form or as JSON."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement, %(default)s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    images = [sample.image for sample in read_folder(arguments.data).samples]
    requests = [post(encode_png(image)) for image in images]
    forms = [form(encode_png(image)) for image in images]
    predictor = Predictor.load(arguments.model)
    present = [name for name, (module, _) in PEERS.items() if find_spec(module)]
    print(f"not installed: {', '.join(PEERS.keys() - set(present)) or 'none'}", file=sys.stderr)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in present}
    for _ in range(arguments.rounds):
        for name in present:
            raw, _ = raw_loop(predictor, images, arguments.seconds)
            with running(name, arguments.model.resolve()) as (url, group):
                sent = forms if name in WANT_FORMS else requests
                asyncio.run(load(url, sent, arguments.clients, arguments.seconds / 5))  # warm
                answers = asyncio.run(load(url, sent, arguments.clients, arguments.seconds))
                found[name].append(answers | {"raw": raw, "rss": memory(group)})
    rows = {name: row(rounds) for name, rounds in found.items()}
    print(f"{arguments.clients} clients   " + "".join(f"{column:>14}" for column in next(iter(rows.values()))))
    for name, columns in rows.items():
        print(f"{name:12}" + "".join(f"{value:14.4g}" for value in columns.values()))
    if arguments.json:
        arguments.json.write_text(json.dumps({"clients": arguments.clients, "rows": rows}, indent=2) + "\n")


def row(rounds: list[dict[str, Any]]) -> dict[str, float]:
    times = sorted(t for each in rounds for t in each["times"])
    return {
        "requests/s": sum(each["rate"] for each in rounds) / len(rounds),
        "share of raw": sum(each["rate"] for each in rounds) / sum(each["raw"] for each in rounds),
        "p50 ms": 1000 * percentile(times, 0.5),
        "p99 ms": 1000 * percentile(times, 0.99),
        "not 200": sum(n for each in rounds for status, n in each["statuses"].items() if status != 200),
        "rss MiB": max(each["rss"] for each in rounds),
    }


@contextmanager
def running(name: str, model: Path) -> Iterator[tuple[str, int]]:
    """A peer that answers, its address and process group."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [{"MODEL": str(model), "PORT": str(port)}.get(word, word) for word in PEERS[name][1]]
    environment = os.environ | {
        "MODEL": str(model),
        "PYTHONPATH": os.pathsep.join((str(FOLDER), str(FOLDER.parents[2]))),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    log = Path(f"/tmp/peers-{os.getpid()}-{name.split()[0]}.log")
    with log.open("w") as said:
        server = subprocess.Popen(
            command, cwd=FOLDER, env=environment, stdout=said, stderr=said, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(port, server, log)
        yield url, server.pid
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
    log.unlink()


def wait_for(port: int, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    raise SystemExit(f"it does not start; what it said is in {log}")


def form(file: bytes) -> bytes:
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n' + file + b"\r\n--b--\r\n"
    fields = f"Host: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: {len(body)}"
    return f"POST /segment HTTP/1.1\r\n{fields}\r\n\r\n".encode() + body


def memory(server: int) -> float:
    """Resident memory of a process and all that it started, MiB; what they share counts once for each."""
    pages, members = 0, {server}
    for process in sorted((p for p in Path("/proc").glob("[0-9]*")), key=lambda p: int(p.name)):
        with suppress(OSError):  # it has ended
            pid, parent = int(process.name), int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in members or os.getsid(pid) == server:
                members.add(pid)
                pages += int((process / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
