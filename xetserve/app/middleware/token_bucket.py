"""Token buckets: how often, and how much, on an average. Pure: the time is told."""

from xetserve.base.lru_dict import LruDict


class Bucket:
    """Fills at a rate up to a capacity; is emptied by what happens.

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
        """Seconds until the bucket holds amount, or is full; 0: it does so now."""
        self._fill(now)
        return max(0.0, (min(amount, self._capacity) - self._level) / self._rate)

    def take(self, amount: float, now: float) -> None:
        """Take amount out, whatever is there: what is owed is filled up first."""
        self._fill(now)
        self._level -= amount

    def _fill(self, now: float) -> None:
        self._level = min(self._capacity, self._level + (now - self._updated) * self._rate)
        self._updated = now


class BucketTable:
    """A bucket for each key that was used lately.

    Args:
        rate: units a second of one key.
        burst: seconds' worth of the rate that a bucket holds; at least one unit.
        max_keys: buckets at most. The one that was not used for longest goes first, and has most
            likely filled up anyway.
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
