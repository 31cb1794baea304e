"""Server-sent events of the Hub: logs and metrics of jobs, logs of Spaces, events of buckets.

Such a stream has no end and says little: it is sent as it comes, and may be quiet for long. Its
client holds one connection to this server, and this server one to the Hub.

Source: huggingface_hub hf_api.py, _stream_sse_events, and _bucket_live_follow.py.
"""

from typing import Final

from xetserve.app.download.body import start_body
from xetserve.app.hub.json_bodies import Page, stream_blocks
from xetserve.http.messages import Headers, Request, Response

MEDIA_TYPE: Final = "text/event-stream"
# Seconds until the Hub must send a head. Servers may send it with the first event or comment only,
# and the Hub's comments come about every 30 s. Clients wait for 120 s.
HEAD_TIMEOUT: Final = 60.0
# Seconds without a byte, comments included, after which the Hub counts as gone.
QUIET_TIMEOUT: Final = 300.0
_BUFFER_SIZE: Final = 8 * 1024  # bytes; thousands of streams may be open
_KINDS: Final = ("jobs", "spaces", "buckets")
_VERBS: Final = ("logs", "events", "metrics")


def may_stream(request: Request) -> bool:
    """Return whether the answer may be an event stream: the client asks for one, or its path is
    /api/{kind}/{owner}/{name}/{verb}.
    """
    if MEDIA_TYPE in (request.headers.get("accept") or "").lower():
        return True
    parts = request.raw_path.split("/")
    return len(parts) > 5 and parts[1] == "api" and parts[2] in _KINDS and parts[5] in _VERBS


def is_stream(headers: Headers) -> bool:
    """Return whether an answer is an event stream."""
    media_type = (headers.get("content-type") or "").partition(";")[0]
    return media_type.strip().lower() == MEDIA_TYPE


async def make_stream(page: Page, headers: list[tuple[str, str]]) -> Response:
    """Make the response of an event stream; the page is closed with its body."""
    # nginx would collect events until its buffer is full.
    if not any(name.lower() == "x-accel-buffering" for name, _ in headers):
        headers.append(("X-Accel-Buffering", "no"))
    blocks = stream_blocks(page, QUIET_TIMEOUT, _BUFFER_SIZE)
    return Response(page.status, headers, await start_body(blocks), is_live=True)
