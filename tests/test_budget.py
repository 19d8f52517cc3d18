"""The budget of pixels for large images."""

import asyncio
from contextlib import suppress

import pytest
from conftest import run
from starlette.exceptions import HTTPException

from service.admission import SMALL, PixelBudget

LARGE = 2 * SMALL


class Image:
    """A request with an image of so many pixels; `inside` while it has room."""

    def __init__(self, budget: PixelBudget, pixels: int) -> None:
        self.inside = False
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._process(budget, pixels))

    async def _process(self, budget: PixelBudget, pixels: int) -> None:
        async with budget.room(pixels):
            self.inside = True
            await self._leave.wait()
        self.inside = False

    async def finish(self) -> None:
        self._leave.set()
        await self.task
        await settle()

    async def cancel(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def come(budget: PixelBudget, *pixels: int) -> list[Image]:
    images = [Image(budget, each) for each in pixels]
    await settle()
    return images


def test_images_are_admitted_in_order_while_there_is_room() -> None:
    async def work() -> None:
        images = await come(PixelBudget(2 * LARGE, max_waiting=4), *[LARGE] * 5)
        assert [image.inside for image in images] == [True, True, False, False, False]
        await images[1].finish()
        assert [image.inside for image in images] == [True, False, True, False, False]

    run(work())


def test_a_small_image_never_waits() -> None:
    async def work() -> None:
        budget = PixelBudget(2 * LARGE, max_waiting=4)
        *_, small = await come(budget, 2 * LARGE, LARGE, SMALL)
        assert small.inside

    run(work())


def test_a_larger_image_is_not_overtaken() -> None:
    async def work() -> None:
        budget = PixelBudget(2 * LARGE, max_waiting=4)
        first, second, both, after = await come(budget, LARGE, LARGE, 2 * LARGE, LARGE)
        await first.finish()
        assert (both.inside, after.inside) == (False, False)
        await second.finish()
        assert (both.inside, after.inside) == (True, False)

    run(work())


def test_an_image_above_the_whole_budget_is_processed_alone() -> None:
    async def work() -> None:
        budget = PixelBudget(2 * LARGE, max_waiting=4)
        huge, other = await come(budget, 100 * LARGE, LARGE)
        assert (huge.inside, other.inside) == (True, False)
        await huge.finish()
        assert other.inside

    run(work())


def test_cancelled_requests_give_back_their_room_or_their_turn() -> None:
    async def work() -> None:
        budget = PixelBudget(2 * LARGE, max_waiting=4)
        first, impatient, after = await come(budget, LARGE, 2 * LARGE, LARGE)
        await impatient.cancel()
        assert after.inside
        await first.cancel()
        (another,) = await come(budget, LARGE)
        assert another.inside

    run(work())


def test_a_request_cancelled_just_when_its_turn_comes_takes_nothing() -> None:
    async def work() -> None:
        budget = PixelBudget(2 * LARGE, max_waiting=4)
        first, second = await come(budget, 2 * LARGE, 2 * LARGE)
        first._leave.set()
        await first.task  # the second has its turn, but has not noticed yet
        await second.cancel()
        (third,) = await come(budget, 2 * LARGE)
        assert third.inside

    run(work())


def test_too_many_waiting_images_are_refused() -> None:
    async def work() -> None:
        budget = PixelBudget(2 * LARGE, max_waiting=4)
        images = await come(budget, *[LARGE] * 7)
        with pytest.raises(HTTPException, match="4 images above 1048576 pixels are waiting already") as refused:
            await images[-1].task
        assert (refused.value.status_code, refused.value.headers) == (503, {"Retry-After": "5"})
        await images[0].finish()
        (another,) = await come(budget, LARGE)
        assert not another.task.done()

    run(work())
