"""The simulation of docs/scaling.md against what queueing theory knows, and its losses."""

from math import nan

import pytest
from benchmarks.simulation import Cost, Farm, Machine, Outcome, at_random

CORE = Machine(max_in_flight=10**6)
"""One core with room for all."""
COST = Cost(0.001, 0.008, 0.001)


@pytest.mark.parametrize("load", [0.3, 0.8])
def test_one_core_waits_as_long_as_theory_says(load: float) -> None:
    service_s = 0.002
    found = Farm(CORE, 1).run(at_random(lambda t: load / service_s, 60, [Cost(service_s, 0, 0)]))
    mean = sum(found.latencies) / len(found.latencies)
    # M/D/1: Pollaczek-Khinchine
    assert mean == pytest.approx(service_s * (1 + load / (2 * (1 - load))), rel=0.05)


def test_an_overloaded_replica_answers_what_it_can_and_refuses_the_rest() -> None:
    found = Farm(Machine(max_in_flight=16), 1).run(at_random(lambda t: 200, 30, [COST]))
    assert len(found.latencies) / found.last == pytest.approx(100, rel=0.03)
    assert found.refused == found.lost == pytest.approx(3_000, rel=0.1)
    assert max(found.latencies) < 16 * 0.010 + 0.003


def test_a_gpu_computes_in_batches_while_cores_decode() -> None:
    machine = Machine(cores=4, gpu=True, launch_s=0.008, max_in_flight=64)
    found = Farm(machine, 1).run(at_random(lambda t: 2000, 5, [Cost(0.001, 0.001, 0.001)]))
    # 16 images in 8 + 16 ms
    assert len(found.latencies) / found.last == pytest.approx(16 / 0.024, rel=0.05)


def test_what_a_lost_replica_had_in_flight_is_asked_again() -> None:
    def lossy(attempts: int) -> Outcome:
        farm = Farm(CORE, 2)
        farm.lose(5, 1, 3)
        return farm.run(at_random(lambda t: 150, 20, [COST]), attempts)

    patient, impatient = lossy(attempts=2), lossy(attempts=1)
    assert patient.retried > 0
    assert patient.lost == 0
    assert impatient.lost == impatient.retried > 0


def test_without_an_answer_there_is_no_percentile() -> None:
    found = Farm(Machine(max_in_flight=0), 1).run([(0.5, COST)])
    assert found.percentile(0.5) is nan
    assert found.refused == 1
