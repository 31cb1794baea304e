"""A bounded dictionary: what stays, what leaves, and that nothing walks it."""

from hypothesis import given
from hypothesis import strategies as st

from xetserve.base.lru_dict import LruDict


def test_what_was_used_longest_ago_goes_first() -> None:
    kept: LruDict[str, int] = LruDict(max_num=2)
    kept.put("a", 1)
    kept.put("b", 2)
    assert kept.get("a") == 1
    kept.put("c", 3)
    assert (kept.peek_first(), "c" in kept) == (("a", 1), True)
    assert (kept.get("b"), "b" in kept, len(kept)) == (None, False, 2)


def test_looking_is_not_using() -> None:
    kept: LruDict[str, int] = LruDict(max_num=2)
    kept.put("a", 1)
    kept.put("b", 2)
    assert (kept.peek("a"), kept.peek("x")) == (1, None)
    kept.put("c", 3)
    assert kept.peek_first() == ("b", 2)


def test_the_last_one_stays_whatever_it_costs() -> None:
    kept: LruDict[str, int] = LruDict(max_cost=10)
    kept.put("a", 1, 5)
    kept.put("b", 2, 50)
    assert (kept.peek_first(), len(kept), kept.cost) == (("b", 2), 1, 50)
    kept.put("c", 3, 5)
    assert (kept.peek_first(), len(kept), kept.cost) == (("c", 3), 1, 5)
    assert LruDict[str, int]().peek_first() is None


def test_who_leaves_is_told() -> None:
    left: list[tuple[str, int]] = []
    kept: LruDict[str, int] = LruDict(max_num=1, on_leave=lambda *item: left.append(item))
    kept.put("a", 1)
    kept.put("a", 2)
    kept.put("b", 3)
    kept.pop("b")
    assert kept.pop("b") is None
    assert left == [("a", 1), ("a", 2), ("b", 3)]
    assert (kept.cost, len(kept)) == (0, 0)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30), st.booleans()), max_size=60))
def test_the_running_cost_is_the_sum(steps: list[tuple[int, int, bool]]) -> None:
    costs: dict[int, int] = {}
    kept: LruDict[int, int] = LruDict(
        max_num=5, max_cost=60, on_leave=lambda key, _: costs.pop(key)
    )
    for key, cost, is_put in steps:
        if is_put:
            kept.put(key, cost, cost)
            costs[key] = cost
        else:
            kept.pop(key)
        assert all((number in kept) == (number in costs) for number in range(10))
        assert kept.cost == sum(costs.values())
        assert len(kept) == len(costs) <= 5
        assert kept.cost <= 60
