"""Metrics of answered requests."""

from http import HTTPStatus

from xetserve.http.messages import Request
from xetserve.metrics.catalogue import CUT_REQUESTS, DURATION, FIRST_BYTE, REQUESTS

_STATUSES = frozenset(int(status) for status in HTTPStatus)


def count_answer(request: Request) -> None:
    """Count an answered request from its record."""
    record = request.record
    route, status = record.route, record.status
    REQUESTS.add(route, str(status) if status in _STATUSES else f"{status // 100}xx")
    if not record.is_complete:
        CUT_REQUESTS.add(route)
    if record.first_byte_time is not None:
        FIRST_BYTE.observe(record.first_byte_time, route)
    DURATION.observe(record.total_time, route)
