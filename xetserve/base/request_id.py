"""The id of the request that the running task works for: every line of a debug log begins with it.

A task inherits it from the one that starts it. So work that several requests share, such as a
fetch, names the request that began it.
"""

from contextvars import ContextVar
from typing import Final

REQUEST_ID: Final[ContextVar[str]] = ContextVar("request_id", default="")  # "": of no request
