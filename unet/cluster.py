"""The Ray cluster on which `unet-segment` and `unet-train` share out their work with `--engine ray`. Needs the extra
`cluster`."""

import logging
import os
import signal
import socket
from typing import Literal

import ray

from unet.errors import UserError

CONNECT_S = 10  # for a connection to the address of a cluster


def join(device: str) -> tuple[Literal["GPU", "CPU"], list[int]]:
    """Join the cluster at RAY_ADDRESS, or one that runs here, or start one here; `ray.shutdown` leaves it. Returns what
    processes get by the choice of a device, and how many of these each node has. Raises UserError."""
    address = os.environ.get("RAY_ADDRESS", "")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    before = signal.getsignal(signal.SIGTERM)
    try:
        host, _, port = address.rpartition(":")
        if host:  # Ray would try for a quarter of an hour
            socket.create_connection((host.removeprefix("ray://"), int(port)), CONNECT_S).close()
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"RAY_ADDRESS={address}: expected a Ray cluster, found: {error}") from error
    finally:
        signal.signal(signal.SIGTERM, before)  # Ray sets its own
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = device.startswith("cuda") or (device == "auto" and any("GPU" in node for node in nodes))
    kind: Literal["GPU", "CPU"] = "GPU" if gpus else "CPU"
    numbers = [int(node.get(kind, 0)) for node in nodes]
    if not any(numbers):
        ray.shutdown()
        raise UserError(f"--device {device}: expected a Ray cluster with a {kind}, found none")
    return kind, numbers
