"""How much may be held."""

import pytest

from xetserve.pipeline.flow.budget import MAX_FREE_SLABS, SLAB_SIZE, SMALL_SLAB_SIZE, ByteBudget


def test_what_is_taken_is_held_until_it_is_given_back() -> None:
    budget = ByteBudget(100)
    assert budget.try_take(30)
    budget.take(10)
    assert budget.held == 40
    budget.give(15)
    assert budget.held == 25


def test_the_process_has_a_ceiling() -> None:
    budget = ByteBudget(100)
    assert budget.try_take(90)
    assert not budget.try_take(11)
    assert budget.try_take(10)
    assert budget.held == 100


def test_what_is_needed_to_go_on_is_granted_above_the_limit() -> None:
    budget = ByteBudget(10)
    budget.take(1000)
    assert budget.held == 1000
    assert not budget.try_take(0)


def test_a_share_leaves_room_for_one_more() -> None:
    budget = ByteBudget(120)
    shares = []
    for _ in range(3):
        budget.open_reader()
        shares.append(budget.share)
    assert shares == [60, 40, 30]


@pytest.mark.parametrize("size", [1, SMALL_SLAB_SIZE, SLAB_SIZE, SLAB_SIZE + 1])
def test_a_slab_has_the_size_that_was_asked_for(size: int) -> None:
    budget = ByteBudget(0)
    slab = budget.make_slab(size)
    assert len(slab) == size
    budget.recycle(slab)
    assert len(budget.make_slab(size)) == size


def test_large_slabs_are_used_again_and_not_too_many_are_kept() -> None:
    budget = ByteBudget(0)
    slabs = [budget.make_slab(SLAB_SIZE) for _ in range(MAX_FREE_SLABS + 2)]
    for slab in slabs:
        budget.recycle(slab)
    again = [budget.make_slab(SLAB_SIZE) for _ in slabs]
    assert len({id(slab) for slab in again}) == len(again)
    assert len({id(slab) for slab in again} & {id(slab) for slab in slabs}) == MAX_FREE_SLABS
