"""Every exception that xetserve raises on purpose.

XetserveError
  ConfigError           the operator must change something; exit before serving
  RequestError          the client must change something; carries a 4xx status
  FormatError           bytes that are not valid Xet
  IntegrityError        valid Xet whose hash or length is not the promised one
  BrokenStream          the peer of a socket is gone
  UpstreamError         the Hub, the CAS or a data URL let us down; 502
    UpstreamMissing     no such repo, revision, path or file hash; 404
    UpstreamTimeout     no answer in time; 504
    UpstreamBusy        429 (passed on as 429) or 503; carries retry_after
      OutOfFiles        no connection for want of files of our own; 503
    UpstreamDenied      the token was refused; 401 or 403, as the Hub said
    UpstreamRefused     another 4xx, which asking again will not change; 502
    UpstreamOffline     nobody is to be asked, and it is not known here; 504
    UpstreamLoop        the Hub found that it was asked by itself; 508
    UrlExpired          a signed URL ran out; recovered by asking the CAS again
    RangeUnsatisfiable  the CAS says that the range starts past the end of the file

Messages may reach the client, so they hold hashes, sizes and statuses, never a URL or a token.
"""

from collections.abc import Sequence


class XetserveError(Exception):
    """The base of all of them."""


class ConfigError(XetserveError):
    """A setting is unknown or has a bad value; the message names it."""


class RequestError(XetserveError):
    """The client's request cannot be served as it is.

    Args:
        status: HTTP status, 400 to 499; 501 and 505 for what HTTP or we do not have; 503, try
            again; 508, a loop.
        headers: further response headers, for example Allow or WWW-Authenticate.
    """

    def __init__(self, status: int, message: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.headers = tuple(headers)


class FormatError(XetserveError):
    """Bytes that are not valid Xet."""


class IntegrityError(XetserveError):
    """Well-formed data that is not what was promised."""


class BrokenStream(XetserveError):
    """The peer closed or reset the connection."""


class UpstreamError(XetserveError):
    """An upstream failure; 502 unless a subclass says otherwise.

    Args:
        code: the Hub's X-Error-Code, passed on to the client.
        headers: further headers of the Hub's answer that the client should see.
    """

    status = 502
    retriable = True  # whether the same request may do better later

    def __init__(
        self, message: str, *, code: str | None = None, headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        super().__init__(message)
        self.code = code
        self.headers = tuple(headers)


class UpstreamMissing(UpstreamError):
    """There is no such thing; a fact, never retried."""

    status = 404
    retriable = False


class UpstreamTimeout(UpstreamError):
    """No answer, or no byte of one, in time."""

    status = 504


class UpstreamBusy(UpstreamError):
    """The upstream asks for patience.

    Args:
        status: 429 or 503, as the upstream said.
        retry_after: seconds, where the upstream named them.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 503,
        retry_after: float | None = None,
        code: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message, code=code, headers=headers)
        self.status = status
        self.retry_after = retry_after


class OutOfFiles(UpstreamBusy):
    """This process has as many files open as it may have; others will be closed."""

    def __init__(self) -> None:
        super().__init__("this server has as many files open as it may have", retry_after=1.0)


class UpstreamDenied(UpstreamError):
    """The token was refused: 401 or 403."""

    retriable = False

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message, code=code, headers=headers)
        self.status = status


class UpstreamRefused(UpstreamError):
    """An answer that makes no sense for what was asked, and will be the same next time."""

    retriable = False


class UpstreamTooLarge(UpstreamRefused):
    """An answer about more than is taken at once; a question about less may have a smaller one."""


class UpstreamOffline(UpstreamError):
    """The operator wants no upstream to be asked, and what would be asked for is not stored."""

    status = 504
    retriable = False


class UpstreamLoop(UpstreamError):
    """508: the request has come back to where it was before."""

    status = 508
    retriable = False


class UrlExpired(UpstreamError):
    """403 on a data URL: expired, or a range that is not the signed one."""

    retriable = False


class RangeUnsatisfiable(UpstreamError):
    """416 from the CAS: the first byte asked for lies past the end of the file."""

    status = 416
    retriable = False
