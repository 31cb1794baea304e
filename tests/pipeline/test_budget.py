"""How much may be held."""

import pytest

from xetserve.pipeline.budget import MAX_FREE_SLABS, SLAB_SIZE, SMALL_SLAB_SIZE, ByteBudget


def test_what_is_taken_is_held_and_given_back() -> None:
    budget = ByteBudget(100)
    account = budget.open_account()
    assert account.try_take(30)
    account.take(10)
    assert (account.held, budget.held) == (40, 40)
    account.give(15)
    assert (account.held, budget.held) == (25, 25)
    account.close()
    assert (account.held, budget.held, budget.num_accounts) == (0, 0, 0)


def test_one_more_response_always_fits() -> None:
    budget = ByteBudget(120)
    first = budget.open_account()
    assert budget.share == 60
    assert first.try_take(60)
    assert not first.try_take(1)
    second = budget.open_account()
    assert budget.share == 40
    assert second.try_take(40)
    assert not second.try_take(1)
    assert not first.try_take(1)  # it holds more than its share by now
    second.close()
    first.give(60)
    assert first.try_take(60)


def test_the_process_has_a_ceiling_whatever_the_shares_say() -> None:
    budget = ByteBudget(100)
    greedy, modest = budget.open_account(), budget.open_account()
    greedy.take(90)
    assert not modest.try_take(20)
    assert modest.try_take(10)


def test_what_is_needed_to_go_on_is_granted_above_the_limit() -> None:
    budget = ByteBudget(10)
    account = budget.open_account()
    account.take(1000)
    assert budget.held == 1000
    assert not account.try_take(0)
    account.close()
    assert budget.held == 0


def test_closing_twice_gives_back_once() -> None:
    budget = ByteBudget(100)
    one, other = budget.open_account(), budget.open_account()
    one.take(5)
    other.take(7)
    one.close()
    one.close()
    assert (budget.held, budget.num_accounts) == (7, 1)


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


def test_the_repr_has_the_numbers() -> None:
    assert repr(ByteBudget(5)) == "<ByteBudget 0 of 5, 0 accounts>"
