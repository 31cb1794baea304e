"""What upstreams answer does not lead this server into its operator's network."""

import json

import pytest

from tests.peers import ScriptedPeer, answering, http_answer, open_pool
from tests.waiting import PATIENCE
from xetserve.errors import UpstreamRefused
from xetserve.metrics.catalogue import UPSTREAM_RETRIES
from xetserve.net.address_policy import AddressPolicy
from xetserve.upstream.cas.client import CasClient
from xetserve.upstream.hub.client import HubClient, ReadAccess, RepoRef
from xetserve.upstream.retry import RetryPolicy
from xetserve.xet.reconstruction import ByteRange, ChunkRange, FetchInfo

POLICY = RetryPolicy(first_delay=0.001, max_delay=0.002, time_limit=0.5)
REPO = RepoRef("model", "owner/name")
HASH = bytes(32)


@pytest.mark.parametrize("way", ["the CAS URL", "a data URL", "a data redirect", "a Hub redirect"])
async def test_an_address_inside_is_refused_at_once(way: str) -> None:
    async with ScriptedPeer(answering(http_answer(200, b"inside"))) as inside:
        answer = http_answer(302, b"", f"Location: {inside.base}/secret?sig=1")
        if way == "the CAS URL":
            document = {"casUrl": inside.base, "accessToken": "t", "exp": 4_000_000_000}
            answer = http_answer(200, json.dumps(document).encode())
        async with (
            ScriptedPeer(answering(answer)) as hub_peer,
            open_pool(AddressPolicy(hub_peer.url().origin, ())) as pool,
        ):
            hub = HubClient(pool, hub_peer.base, timeout=PATIENCE, policy=POLICY)
            cas = CasClient(pool, timeout=PATIENCE, policy=POLICY)
            retries = UPSTREAM_RETRIES.total
            with pytest.raises(UpstreamRefused, match=r"127\.0\.0\.1 .*upstream_networks") as no:
                await _go(way, hub, cas, inside if way == "a data URL" else hub_peer)
        assert inside.wires == []
        assert UPSTREAM_RETRIES.total == retries
        assert (no.value.status, "secret" in str(no.value)) == (502, False)


async def _go(way: str, hub: HubClient, cas: CasClient, peer: ScriptedPeer) -> None:
    """Have a client go where the peer is."""
    if way == "the CAS URL":
        access = ReadAccess(hub, REPO, "main", None)
        await cas.fetch_reconstruction(access, HASH, ByteRange(0, 10))
    elif way == "a Hub redirect":
        entry = await hub.resolve(REPO, "main", "a", None)
        async with hub.open_plain(entry, None):
            pass
    else:
        info = FetchInfo(ChunkRange(0, 1), ByteRange(0, 6), str(peer.url("/secret")))
        async with cas.open_data(HASH, info):
            pass
