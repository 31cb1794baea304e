"""A dictionary bounded by count, by cost, or by both, which drops its least recently used entries.

The cost is a running total: no operation walks the entries, so a full dictionary is as fast as an
empty one.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class _Item(NamedTuple, Generic[V]):
    value: V
    cost: int


class LruDict(Generic[K, V]):
    """Keep the entries that were used last. The newest entry stays, whatever it costs.

    Args:
        max_num: the largest number of entries; None: no limit.
        max_cost: the largest cost of all entries together, in any unit; None: no limit.
        on_leave: called with each entry that is dropped, popped or replaced. It must not change the
            dictionary.
    """

    def __init__(
        self,
        *,
        max_num: int | None = None,
        max_cost: int | None = None,
        on_leave: Callable[[K, V], object] | None = None,
    ) -> None:
        self._max_num = max_num
        self._max_cost = max_cost
        self._on_leave = on_leave
        self._items: OrderedDict[K, _Item[V]] = OrderedDict()
        self._cost = 0

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: K) -> bool:
        return key in self._items

    @property
    def cost(self) -> int:
        """The cost of all entries together."""
        return self._cost

    def get(self, key: K) -> V | None:
        """Return a value and mark it as used now; None: there is none."""
        item = self._items.get(key)
        if item is None:
            return None
        self._items.move_to_end(key)
        return item.value

    def peek(self, key: K) -> V | None:
        """Return a value without marking it as used; None: there is none."""
        item = self._items.get(key)
        return None if item is None else item.value

    def peek_first(self) -> tuple[K, V] | None:
        """Return the least recently used entry, without marking it as used; None: empty."""
        key = next(iter(self._items), None)
        return None if key is None else (key, self._items[key].value)

    def put(self, key: K, value: V, cost: int = 1) -> None:
        """Set a value and its cost, then drop old entries until the bounds hold."""
        self.pop(key)
        self._items[key] = _Item(value, cost)
        self._cost += cost
        while len(self._items) > 1 and self._is_over():
            self._leave(*self._items.popitem(last=False))

    def pop(self, key: K) -> V | None:
        """Remove an entry and return its value; None: there was none."""
        item = self._items.pop(key, None)
        if item is None:
            return None
        self._leave(key, item)
        return item.value

    def _is_over(self) -> bool:
        return (self._max_num is not None and len(self._items) > self._max_num) or (
            self._max_cost is not None and self._cost > self._max_cost
        )

    def _leave(self, key: K, item: _Item[V]) -> None:
        self._cost -= item.cost
        if self._on_leave is not None:
            self._on_leave(key, item.value)
