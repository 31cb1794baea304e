"""Upstream trouble that passes."""

from typing import Any

PASSING: dict[str, dict[str, Any]] = {
    "data URLs refused at first": {"data_403_first": 3},
    "data URLs that live a second": {"url_lifetime": 1, "bandwidth": 20_000_000},
    "read tokens that live 10 seconds": {"token_lifetime": 10},
    "a read token that is expired": {"cas_status_burst": {"status": 401, "count": 1}},
    "v2 answers 404": {"v2_status": 404},
    "v2 answers 501": {"v2_status": 501},
    "one entry per range": {"v2_one_entry_per_range": True},
    "untrimmed terms": {"untrimmed_terms": True},
    "data 429": {"data_status_burst": {"status": 429, "count": 3, "retry_after": 1}},
    "data 500": {"data_status_burst": {"status": 500, "count": 4}},
    "data 503": {"data_status_burst": {"status": 503, "count": 4}},
    "CAS 429": {"cas_status_burst": {"status": 429, "count": 3}},
    "CAS 500": {"cas_status_burst": {"status": 500, "count": 3}},
    "Hub 500": {"hub_status_burst": {"status": 500, "count": 2}},
    "Hub 429": {"hub_status_burst": {"status": 429, "count": 2, "retry_after": 1}},
    "short bodies": {"short_body_first": 4},
    "resets": {"reset_first": 4},
    "a stall": {"stall_first": 1, "stall_seconds": 30},
    "latency": {"latency": {"hub": 0.05, "cas": 0.05, "data": 0.05}},
}
