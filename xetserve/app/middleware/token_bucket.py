"""Token buckets: rates of requests and bytes. Pure: callers pass the time."""

from xetserve.base.lru_dict import LruDict


class Bucket:
    """Fills at a rate, up to a capacity; requests and bytes empty it.

    Args:
        rate: units a second.
        capacity: units that it holds at most, and at first.
    """

    __slots__ = ("_capacity", "_level", "_rate", "_updated")

    def __init__(self, rate: float, capacity: float, now: float) -> None:
        self._rate = rate
        self._capacity = capacity
        self._level = capacity
        self._updated = now

    def wait_time(self, amount: float, now: float) -> float:
        """Return the seconds until the bucket holds amount, or is full; 0: it does so now."""
        self._fill(now)
        return max(0.0, (min(amount, self._capacity) - self._level) / self._rate)

    def take(self, amount: float, now: float) -> None:
        """Remove amount from the bucket. The level may become negative, and is filled up again."""
        self._fill(now)
        self._level -= amount

    def _fill(self, now: float) -> None:
        self._level = min(self._capacity, self._level + (now - self._updated) * self._rate)
        self._updated = now


class BucketTable:
    """A bucket for each recent key.

    Args:
        rate: units a second of one key.
        burst: capacity of a bucket, in seconds of its rate; at least one unit.
        max_keys: buckets at most. The least recently used one is dropped first; most likely it is
            full anyway.
    """

    def __init__(self, rate: float, burst: float, max_keys: int) -> None:
        self._rate = rate
        self._capacity = max(1.0, rate * burst)
        self._buckets: LruDict[str, Bucket] = LruDict(max_num=max_keys)

    def __len__(self) -> int:
        return len(self._buckets)

    def get(self, key: str, now: float) -> Bucket:
        """Return a key's bucket."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = Bucket(self._rate, self._capacity, now)
            self._buckets.put(key, bucket)
        return bucket
