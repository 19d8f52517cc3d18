"""A farm of replicas of the service as a queue simulation (SimPy): what waits for what, in simulated seconds.

A request takes its turn on the cores of a replica to be received and decoded, on its device to be computed, and on the
cores again to be encoded and sent. A replica with `max_in_flight` requests refuses more; the client comes back.
"""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy

Steps = Generator[simpy.Event, Any, None]

TURN_S = 0.003
"""Time slice of an operating system whose cores several threads want."""
LARGEST_BATCH = 16  # images of 512 x 512 that a GPU computes at once


@dataclass(frozen=True)
class Cost:
    """Seconds of one request."""

    before: float  # of a core: HTTP and decoding
    compute: float  # of a core, or of a GPU for each image of a batch
    after: float  # of a core: encoding and HTTP


@dataclass(frozen=True)
class Machine:
    """What a replica has."""

    cores: int = 1
    gpu: bool = False
    launch_s: float = 0.0  # of a batch on the GPU, whatever its size
    max_in_flight: int = 64


@dataclass
class Outcome:
    """What came of the requests."""

    latencies: list[float] = field(default_factory=list)  # of those that were answered
    refused: int = 0  # answers 503
    retried: int = 0  # requests whose replica was lost
    lost: int = 0  # requests that were given up
    last: float = 0.0  # time of the last answer

    def percentile(self, share: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.nan


def at_random(
    rate: Callable[[float], float], seconds: float, costs: Sequence[Cost], seed: int = 0
) -> Iterator[tuple[float, Cost]]:
    """Times of independent requests, `rate(t)` a second, each with one of the costs."""
    chance, now = np.random.default_rng(seed), 0.0
    while (now := now + chance.exponential(1 / rate(now))) < seconds:
        yield now, costs[chance.integers(len(costs))]


class Replica:
    def __init__(self, env: simpy.Environment, machine: Machine) -> None:
        self.env, self.machine = env, machine
        self.in_flight: set[simpy.Process] = set()
        self._cores = simpy.Resource(env, machine.cores)
        self._waiting = simpy.Store(env)
        if machine.gpu:
            env.process(self._compute_batches())

    def serve(self, cost: Cost) -> Steps:
        """The steps of a request."""
        yield from self._on_core(cost.before)
        if self.machine.gpu:
            computed = self.env.event()
            yield self._waiting.put((computed, cost.compute))
            yield computed
        else:
            yield from self._on_core(cost.compute)
        yield from self._on_core(cost.after)

    def _on_core(self, seconds: float) -> Steps:
        """By turns with the others, as an operating system shares cores."""
        while seconds > 0:
            with self._cores.request() as core:
                yield core
                turn = min(TURN_S, seconds)
                yield self.env.timeout(turn)
            seconds -= turn

    def _compute_batches(self) -> Steps:
        """1, 2, 4, 8 or 16 images at a time, as the service's queue takes them."""
        while True:
            batch = [(yield self._waiting.get())]
            n = min(LARGEST_BATCH, 2 ** int(math.log2(1 + len(self._waiting.items))))
            for _ in range(n - 1):
                batch.append((yield self._waiting.get()))
            yield self.env.timeout(self.machine.launch_s + sum(seconds for _, seconds in batch))
            for computed, _ in batch:
                computed.succeed()


class Farm:
    """Replicas behind a router that asks the emptier of two."""

    def __init__(self, machine: Machine, n: int, seed: int = 0) -> None:
        self.env = simpy.Environment()
        self.outcome = Outcome()
        self._machine = machine
        self._chance = np.random.default_rng(seed)
        self._replicas = [Replica(self.env, machine) for _ in range(n)]

    def run(self, arrivals: Iterable[tuple[float, Cost]], attempts: int = 1) -> Outcome:
        """What comes of requests that arrive at these times; a client asks up to `attempts` times, 1 to 3 s after a
        refusal."""
        self.env.process(self._arrive(arrivals, attempts))
        self.env.run()
        return self.outcome

    def lose(self, after: float, n: int, start_s: float) -> None:
        """From then on `n` replicas are gone, with all that they had in flight; others take their place when they have
        started."""
        self.env.process(self._lose(after, n, start_s))

    def _lose(self, after: float, n: int, start_s: float) -> Steps:
        yield self.env.timeout(after)
        for _ in range(n):
            for request in self._replicas.pop().in_flight:
                request.interrupt()
        yield self.env.timeout(start_s)
        self._replicas += [Replica(self.env, self._machine) for _ in range(n)]

    def _arrive(self, arrivals: Iterable[tuple[float, Cost]], attempts: int) -> Steps:
        for time, cost in arrivals:
            yield self.env.timeout(time - self.env.now)
            self.env.process(self._client(cost, attempts))

    def _client(self, cost: Cost, attempts: int) -> Steps:
        asked = self.env.now
        for attempt in range(attempts):
            two = self._chance.integers(len(self._replicas), size=2)
            replica = min((self._replicas[i] for i in two), key=lambda each: len(each.in_flight))
            if len(replica.in_flight) < self._machine.max_in_flight:
                request = self.env.process(replica.serve(cost))
                replica.in_flight.add(request)
                try:
                    yield request
                    self.outcome.latencies.append(self.env.now - asked)
                    self.outcome.last = self.env.now
                    return
                except simpy.Interrupt:
                    self.outcome.retried += 1
                    continue
                finally:
                    replica.in_flight.discard(request)
            self.outcome.refused += 1
            if attempt + 1 < attempts:
                yield self.env.timeout(self._chance.integers(1, 4))
        self.outcome.lost += 1
