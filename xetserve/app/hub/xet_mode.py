"""Decide which clients are told that files are Xet, and for which files.

Clients that do not know Xet ignore the fields, so every client that may know Xet gets them.
huggingface_hub does not say whether hf-xet is installed beside it (neither 0.36 nor 2.4 does); only
the requests of hf-xet itself show it.
"""

import re
from dataclasses import dataclass
from typing import Final

from xetserve.app.download.xet_offer import wants_file_info
from xetserve.http.messages import Request

PLAIN: Final = "plain"
NATIVE: Final = "native"
AUTO: Final = "auto"

# Bytes above which huggingface_hub refuses plain HTTP downloads (MAX_HTTP_DOWNLOAD_SIZE).
CLIENT_LIMIT: Final = 50 * 1000**3
ALL_FILES: Final = -1
# hf-mount reads parts of files as they are needed. Over plain HTTP it fetches each file as a whole
# when it is opened, within 60 s.
_LAZY: Final = re.compile(r"\bhf-mount/", re.IGNORECASE)
_ABLE: Final = re.compile(r"\bhf_hub/|\bhf[-_]xet\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class XetMode:
    """The way in which clients that know Xet are served.

    name: PLAIN: like all other clients. NATIVE: as by a Hub with its own CAS. AUTO: natively for
        large files only, hf-mount for all.
    native_from: bytes; with AUTO, larger files are offered natively.
    """

    name: str = PLAIN
    native_from: int = CLIENT_LIMIT

    def find_limit(self, request: Request) -> int | None:
        """Return the size in bytes above which this client is told that a file is Xet.

        None: it is told of no file.
        """
        agent = request.headers.get("user-agent") or ""
        if self.name == NATIVE or (self.name == AUTO and _LAZY.search(agent)):
            return ALL_FILES
        is_able = wants_file_info(request) or _ABLE.search(agent)
        return self.native_from if self.name == AUTO and is_able else None

    @property
    def is_plain(self) -> bool:
        """Whether no client is told of Xet."""
        return self.name == PLAIN
