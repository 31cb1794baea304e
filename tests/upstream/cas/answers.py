"""A CAS's answer about one file, and the tokens that ask for it."""

from xetserve.upstream.hub.client import CasToken
from xetserve.upstream.retry import RetryPolicy
from xetserve.xet.reconstruction import ByteRange, ChunkRange, FetchInfo, Reconstruction, Term

POLICY = RetryPolicy(first_delay=0.001, max_delay=0.002, time_limit=0.5)
HASH = bytes(range(32))
XORB = bytes(32)
INFO = FetchInfo(ChunkRange(0, 2), ByteRange(10, 30), "http://data.test/x?sig")
PLAN = Reconstruction(0, (Term(XORB, ChunkRange(0, 2), 1000),), {XORB: (INFO,)})


class Access:
    """Tokens t0, t1, ... for one CAS."""

    def __init__(self, cas_url: str) -> None:
        self._cas_url = cas_url
        self.number = 0

    async def get_token(self) -> CasToken:
        return CasToken(self._cas_url, f"t{self.number}", 2e9)

    async def renew_token(self) -> CasToken:
        self.number += 1
        return await self.get_token()
