"""Admission control: places, deadlines and draining."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import pytest
from conftest import run
from starlette.exceptions import HTTPException

from service.admission import Admission


def admission_control(
    max_in_flight: int, timeout_s: float = 60, on_change: Callable[[int], object] = lambda in_flight: None
) -> Admission:
    return Admission(max_in_flight, timeout_s, on_change)


async def hold(admission: Admission, begun: asyncio.Event | None = None) -> None:
    async with admission.admit():
        if begun:
            begun.set()
        await asyncio.sleep(60)


async def holding(admission: Admission) -> "asyncio.Task[None]":
    begun = asyncio.Event()
    task = asyncio.create_task(hold(admission, begun))
    await begun.wait()
    return task


def test_as_many_requests_as_places() -> None:
    counted: list[int] = []

    async def work() -> None:
        admission = admission_control(2, on_change=counted.append)
        tasks = [await holding(admission) for _ in range(2)]
        for seconds in ("1", "2", "3", "1"):  # staggered
            with pytest.raises(HTTPException, match="2 requests are in flight already") as refused:
                async with admission.admit():
                    pass
            assert (refused.value.status_code, refused.value.headers) == (503, {"Retry-After": seconds})
        tasks[0].cancel()
        with suppress(asyncio.CancelledError):
            await tasks[0]
        async with admission.admit():
            assert counted[-1] == 2
        tasks[1].cancel()

    run(work())
    assert counted[:5] == [1, 2, 1, 2, 1]


def test_a_request_ends_at_its_deadline() -> None:
    with pytest.raises(HTTPException, match=r"within 0\.01 s \(--timeout-s\)") as late:
        run(hold(admission_control(1, timeout_s=0.01)))
    assert late.value.status_code == 504


def test_a_timeout_of_something_else_is_not_the_deadlines() -> None:
    async def work() -> None:
        async with admission_control(1).admit():
            raise TimeoutError("of a library")

    with pytest.raises(TimeoutError, match="of a library"):
        run(work())


def test_a_place_can_be_given_up_for_another_reason() -> None:
    async def work() -> None:
        async with admission_control(1).admit() as give_up:
            give_up(HTTPException(499, "the client hung up"))
            await asyncio.sleep(60)

    with pytest.raises(HTTPException, match="hung up"):
        run(work())


def test_draining_waits_for_requests_in_flight() -> None:
    async def work() -> None:
        admission = admission_control(2)
        async with admission.admit():
            draining = asyncio.create_task(admission.drain(60))
            await asyncio.sleep(0)
            assert admission.stopping
            with pytest.raises(HTTPException, match="stopping"):
                admission.check()
            assert not draining.done()
        await draining

    run(work())


def test_draining_ends_what_is_left_after_the_grace_period() -> None:
    async def work() -> None:
        admission = admission_control(2)
        task = await holding(admission)
        await admission.drain(0.01)
        with pytest.raises(HTTPException, match="stopped before this was done") as stopped:
            await task
        assert (stopped.value.status_code, stopped.value.headers["Connection"]) == (503, "close")

    run(work())
