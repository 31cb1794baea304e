"""Who is told of Xet, and of which files.

Clients that do not know Xet leave the offer alone, so it may be made to whoever might take it up.
huggingface_hub does not say whether hf-xet is installed with it (neither 0.36 nor 2.4 does); only
the requests of hf-xet itself do.
"""

import re
from dataclasses import dataclass
from typing import Final

from xetserve.app.download.xet_offer import wants_file_info
from xetserve.http.messages import Request

PLAIN: Final = "plain"
NATIVE: Final = "native"
AUTO: Final = "auto"

# What huggingface_hub refuses to download over plain HTTP (MAX_HTTP_DOWNLOAD_SIZE), in bytes.
CLIENT_LIMIT: Final = 50 * 1000**3
ALL_FILES: Final = -1
_ABLE: Final = re.compile(r"\bhf_hub/|\bhf[-_]xet\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class XetMode:
    """How clients that know Xet are served.

    name: PLAIN: like all others. NATIVE: as a Hub with a CAS of its own. AUTO: natively where it
        serves them better.
    native_from: with AUTO, bytes; files that are larger are offered natively.
    """

    name: str = PLAIN
    native_from: int = CLIENT_LIMIT

    def find_limit(self, request: Request) -> int | None:
        """Return the size in bytes above which this client is told that a file is Xet; None: it is
        told of none.
        """
        if self.name == NATIVE:
            return ALL_FILES
        is_able = wants_file_info(request) or _ABLE.search(request.headers.get("user-agent") or "")
        return self.native_from if self.name == AUTO and is_able else None

    @property
    def is_plain(self) -> bool:
        """Whether nobody is told of Xet."""
        return self.name == PLAIN
