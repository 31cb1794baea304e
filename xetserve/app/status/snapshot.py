"""Combine the counters of all workers, for /metrics, /status and the page."""

import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from xetserve import __version__
from xetserve.app.status.active_streams import STREAMS_SIZE, StreamReader, StreamState
from xetserve.metrics import catalogue as metrics
from xetserve.metrics.instruments import CELLS_SIZE, CellReader, Family, Instrument, Reading
from xetserve.xet.compression import HAS_NATIVE_CODE

PLACE_SIZE: Final = CELLS_SIZE + STREAMS_SIZE  # bytes of one worker: cells, then streams
HISTORY: Final = 306  # samples, one per second
SMOOTHING: Final = 5  # samples averaged for a point of the graph
RATE_TIME: Final = 8.0  # seconds averaged for a rate, since megabytes enter a socket at once


class Sample(NamedTuple):
    """Counters at one moment.

    time: Unix seconds.
    sent: bytes sent to clients.
    fetched: bytes from upstreams and from the cache.
    streams: (place, number of the stream) -> bytes sent.
    """

    time: float
    sent: float
    fetched: float
    streams: dict[tuple[int, int], int]


class Snapshot:
    """Reads the counters of all workers.

    Args:
        places: the memory of each worker, PLACE_SIZE bytes.
        is_alive: returns whether the process of a place runs.
        clock: returns Unix seconds.
    """

    def __init__(
        self,
        places: Sequence[memoryview],
        is_alive: Callable[[int], bool] = lambda number: True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._cells = [CellReader(place[:CELLS_SIZE]) for place in places]
        self._streams = [StreamReader(place[CELLS_SIZE:PLACE_SIZE]) for place in places]
        self._is_alive = is_alive
        self._clock = clock
        self._refreshers: list[Callable[[], Awaitable[None]]] = []
        self.history: deque[Sample] = deque(maxlen=HISTORY)

    def on_refresh(self, refresh: Callable[[], Awaitable[None]]) -> None:
        """Register a callback that refresh() calls to update the gauges of this process."""
        self._refreshers.append(refresh)

    async def refresh(self) -> None:
        """Update the gauges of this process."""
        for refresh in self._refreshers:
            await refresh()

    def _read(self) -> tuple[list[Reading], list[Reading]]:
        """Return the counters of running workers and of ended ones."""
        living: list[Reading] = []
        ended: list[Reading] = []
        for number, cells in enumerate(self._cells):
            (living if self._is_alive(number) else ended).append(cells.read())
        return living, ended

    def collect(self) -> list[Family]:
        """Return all metrics, for /metrics."""
        return metrics.REGISTRY.collect(*self._read())

    def sample(self) -> None:
        """Add a sample to the history; to be called once per second."""
        living, ended = self._read()
        readings = living + ended
        sent = metrics.SENT_BYTES.total_of(readings)
        fetched = metrics.UPSTREAM_BYTES.total_of(readings) + metrics.CACHE_BYTES.total_of(readings)
        streams = {
            (place, number): sent
            for place, reader in enumerate(self._streams)
            for number, sent in reader.read_sent().items()
        }
        self.history.append(Sample(self._clock(), sent, fetched, streams))

    def describe(self, *, with_names: bool) -> dict[str, Any]:
        """Return the JSON value of /status.

        Args:
            with_names: include the names of files, repositories and clients.
        """
        living, ended = self._read()
        counted = living + ended
        now = self._clock()

        def total(instrument: Instrument) -> int:
            return int(instrument.total_of(living if instrument.kind == "gauge" else counted))

        def by_label(instrument: Instrument) -> dict[str, int]:
            merged = instrument.merge(counted)
            return {"/".join(labels): int(values[0]) for labels, values in merged.items()}

        started = metrics.START_TIME.merge(living)[()][0] or now
        sent_rate, fetched_rate = self._average()
        streams = self._describe_streams(now, with_names=with_names)
        cache_limit = _greatest(metrics.CACHE_LIMIT, living)
        return {
            "version": __version__,
            "state": "draining" if total(metrics.DRAINING) else "serving",
            "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
            "uptime": round(max(0.0, now - started), 1),
            "native_code": HAS_NATIVE_CODE,
            "workers": total(metrics.WORKERS),
            "connections": total(metrics.CONNECTIONS),
            "requests": {
                "active": total(metrics.ACTIVE_REQUESTS),
                "total": total(metrics.REQUESTS),
                "cut": total(metrics.CUT_REQUESTS),
                "refused": total(metrics.REQUESTS_REFUSED) + total(metrics.CONNECTIONS_REFUSED),
            },
            "sent_bytes": total(metrics.SENT_BYTES),
            "sent_rate": round(sent_rate),
            "upstream": {
                "bytes": by_label(metrics.UPSTREAM_BYTES),
                "requests": by_label(metrics.UPSTREAM_REQUESTS),
                "retries": total(metrics.UPSTREAM_RETRIES),
                "failures": total(metrics.UPSTREAM_FAILURES),
            },
            "fetched_rate": round(fetched_rate),
            "integrity_failures": total(metrics.INTEGRITY_FAILURES),
            "memory": {
                "budget_held": total(metrics.BUDGET_HELD),
                "budget_limit": total(metrics.BUDGET_LIMIT),
                "resident": total(metrics.RESIDENT_MEMORY),
            },
            "cache": None
            if not cache_limit
            else {
                "size": _greatest(metrics.CACHE_SIZE, living),
                "limit": cache_limit,
                "hits": total(metrics.CACHE_HITS),
                "misses": total(metrics.CACHE_MISSES),
                "bytes": total(metrics.CACHE_BYTES),
                "trouble": [
                    labels[0]
                    for labels, values in metrics.CACHE_TROUBLE.merge(living).items()
                    if values[0]
                ],
            },
            "streams": streams,
        }

    def _average(self) -> tuple[float, float]:
        """Return the sent and fetched bytes per second, averaged over RATE_TIME."""
        if len(self.history) < 2:
            return 0.0, 0.0
        last = self.history[-1]
        first = next(
            (each for each in reversed(self.history) if last.time - each.time >= RATE_TIME),
            self.history[0],
        )
        seconds = max(last.time - first.time, 0.001)
        return (last.sent - first.sent) / seconds, (last.fetched - first.fetched) / seconds

    def rates(self) -> list[tuple[float, float]]:
        """Return the sent and fetched bytes per second for each sample, smoothed, oldest first."""
        found = []
        samples = list(self.history)
        starts = [*samples[:1] * (SMOOTHING - 1), *samples]
        for before, after in zip(starts, samples[1:], strict=False):
            seconds = after.time - before.time
            if seconds > 0:  # somebody may have set the clock back
                sent, fetched = after.sent - before.sent, after.fetched - before.fetched
                found.append((sent / seconds, fetched / seconds))
        return found or [(0.0, 0.0)]

    def _describe_streams(self, now: float, *, with_names: bool) -> list[dict[str, Any]]:
        found = [
            (number, stream)
            for number, reader in enumerate(self._streams)
            if self._is_alive(number)
            for stream in reader.read()
        ]
        found.sort(key=lambda pair: pair[1].started)
        return [self._describe_stream(*each, now, with_names=with_names) for each in found]

    def _describe_stream(
        self, place: int, stream: StreamState, now: float, *, with_names: bool
    ) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "route": stream.text.get("route", "other"),
            "seconds": round(max(0.0, now - stream.started), 1),
            "sent": stream.sent,
            "size": stream.size,
            "rate": round(self._rate_of(place, stream, now)),
            "stage": stream.stage.name.lower(),
        }
        if with_names:
            shown |= {name: stream.text.get(name) for name in ("file", "repo", "client", "id")}
        return shown

    def _rate_of(self, place: int, stream: StreamState, now: float) -> float:
        """Return the bytes per second over RATE_TIME; of a newer stream, since its start."""
        key = (place, stream.number)
        for sample in reversed(self.history):
            if key not in sample.streams:
                break
            if now - sample.time >= RATE_TIME:
                return (stream.sent - sample.streams[key]) / (now - sample.time)
        return stream.sent / max(now - stream.started, 0.001)


def _greatest(instrument: Instrument, readings: list[Reading]) -> int:
    return int(max((values[0] for values in instrument.merge(readings).values()), default=0))
