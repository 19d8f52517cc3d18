"""Farms for so many images a day, and what the simulation says of them:  python tests/benchmarks/plan.py

Needs simpy, of the extra `test`. Takes the seconds and bytes of one request from `docs/scaling.md`, which says where
they were measured (flags replace them), and counts cores, GPUs, network and storage. Then simulates a minute at the
busiest time of the day: bursts of twice that rate, a tenth of the replicas lost, others in their place after
`--start-s`. Prints what clients see, who ask up to three times.
"""

import argparse
import math
from dataclasses import dataclass

from simulation import Cost, Farm, Machine, at_random

from service.settings import ServeSettings

DAY_S = 86_400
PLACES = ServeSettings().max_in_flight
PROCESSES = 6  # of the service beside a GPU, as one hands out some 300 requests a second
BUSY = 0.6  # share of the time that a core or GPU computes at the busiest time
SIMULATED_S = 60
BURST_S = 5  # of every 30
LARGEST = 10  # replicas that are simulated; of more, these and their share of the requests


@dataclass(frozen=True)
class Kind:
    """A replica: one process of the service."""

    name: str
    machine: Machine
    cost: Cost

    @property
    def capacity(self) -> float:
        """Requests a second at most."""
        on_core, cores = self.cost.before + self.cost.after, self.machine.cores
        if self.machine.gpu:
            return min(cores / on_core, 1 / self.cost.compute)
        return cores / (on_core + self.cost.compute)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-day", type=float, nargs="+", default=[1e6, 1e9], help="images a day")
    parser.add_argument("--peak", type=float, default=3, help="busiest hour over the mean (%(default)s)")
    parser.add_argument("--decode-ms", type=float, default=8.5, help="of a core: HTTP and decoding (%(default)s)")
    parser.add_argument("--encode-ms", type=float, default=2.5, help="of a core: encoding and HTTP (%(default)s)")
    parser.add_argument("--cpu-ms", type=float, default=37, help="of a core: the network at base 16 (%(default)s)")
    parser.add_argument("--gpu-ms", type=float, default=0.69, help="of a GPU: the network at base 64 (%(default)s)")
    parser.add_argument("--gpu-cores", type=int, default=16, help="cores beside each GPU (%(default)s)")
    parser.add_argument("--upload-kb", type=float, default=219)
    parser.add_argument("--answer-kb", type=float, default=7)
    parser.add_argument("--start-s", type=float, default=30, help="until a new replica answers (%(default)s)")
    arguments = parser.parse_args()
    before, after = arguments.decode_ms / 1000, arguments.encode_ms / 1000
    on_cpu = Kind("core", Machine(cores=1, max_in_flight=PLACES), Cost(before, arguments.cpu_ms / 1000, after))
    gpu = Machine(arguments.gpu_cores, gpu=True, launch_s=0.0005, max_in_flight=PROCESSES * PLACES)
    on_gpu = Kind("GPU", gpu, Cost(before, arguments.gpu_ms / 1000, after))
    for kind in (on_cpu, on_gpu):
        print(f"one {kind.name}: {kind.capacity:.0f} requests/s at most")
    for per_day in arguments.per_day:
        for kind in (on_cpu, on_gpu):
            plan(kind, per_day, arguments)


def plan(kind: Kind, per_day: float, arguments: argparse.Namespace) -> None:
    mean = per_day / DAY_S
    peak = arguments.peak * mean
    n = max(2, math.ceil(peak / kind.capacity / BUSY))  # two: one may be lost
    cores = n * kind.machine.cores
    hours = 24 * max(2, mean / kind.capacity / BUSY)
    print(f"\n{per_day:.0e} a day on {kind.name}s: {mean:.3g}/s, at the busiest time {peak:.3g}/s")
    print(f"  {n} replicas, {cores} cores; {kind.name}-hours a day {24 * n}, autoscaled {hours:.0f}")
    gbit = peak * 8e-6  # per kB
    print(f"  network {gbit * arguments.upload_kb:.3g} Gbit/s in, {gbit * arguments.answer_kb:.3g} Gbit/s out")
    tb = per_day * 1e-9
    print(f"  a day's uploads {tb * arguments.upload_kb:.3g} TB, answers {tb * arguments.answer_kb:.3g} TB")
    part = min(n, LARGEST)
    simulate(kind, part, peak * part / n, arguments.start_s)


def simulate(kind: Kind, n: int, peak: float, start_s: float) -> None:
    farm = Farm(kind.machine, n)
    farm.lose(SIMULATED_S / 2 + 2, max(1, n // 10), start_s)
    busiest = at_random(lambda t: peak * (2 if t % 30 < BURST_S else 1), SIMULATED_S, [kind.cost])
    found = farm.run(busiest, attempts=3)
    total = len(found.latencies) + found.lost
    said = ", ".join(f"p{100 * share:.0f} {1000 * found.percentile(share):.0f} ms" for share in (0.5, 0.99))
    shares = [100 * each / total for each in (found.refused, found.retried, found.lost)]
    refused, retried, lost = (f"{share:.2g} %" for share in shares)
    print(f"  simulated: {said}; 503 {refused}, asked again after a loss {retried}, given up {lost}")


if __name__ == "__main__":
    main()
