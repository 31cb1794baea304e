"""Exceptions: all classes that xetserve raises on purpose.

XetserveError
  ConfigError           a setting is wrong; the operator must correct it
  RequestError          the client must change the request; has an HTTP status
  FormatError           bytes that are not valid Xet, JSON or encoded content
    OtherVersion        a stored file of another version of xetserve
  IntegrityError        valid data whose hash or length is not the expected one
  BrokenStream          the connection to a peer broke
  UpstreamError         the Hub, the CAS or a data host failed; status 502
    UpstreamMissing     the repository, revision, path or file hash does not exist; 404
    UpstreamTimeout     the upstream did not answer in time; 504
    UpstreamBusy        the upstream answered 429 or 503; the same status, has retry_after
      OutOfFiles        this process cannot open another file for a connection; 503
    UpstreamDenied      the upstream refused the token; 401 or 403, as the upstream
    UpstreamRefused     another 4xx that a retry does not change; 502
      UpstreamTooLarge  the upstream's answer is too large
    UpstreamUntrusted   the upstream's certificate cannot be verified; 502
    UpstreamOffline     offline mode, and the content is not stored; 504
    UpstreamLoop        the upstream found a loop in the request's way; 508
    UrlExpired          a signed URL has expired; the server requests a new one from the CAS
    RangeUnsatisfiable  the range starts past the end of the file; 416

A message may reach the client, so it may hold hashes, sizes and statuses, never a URL or a token.
"""

from collections.abc import Sequence


class XetserveError(Exception):
    """The base class of all exceptions of xetserve."""


class ConfigError(XetserveError):
    """A setting is unknown or has an invalid value; the message names the setting."""


class RequestError(XetserveError):
    """The server cannot serve the client's request in this form.

    Args:
        status: HTTP status: 400 to 499; 501 or 505 for an unsupported feature; 503 if the client
            should retry; 508 for a loop.
        headers: further response fields, for example Allow or WWW-Authenticate.
    """

    def __init__(self, status: int, message: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.headers = tuple(headers)


class FormatError(XetserveError):
    """Bytes are not valid Xet, JSON or encoded content."""


class OtherVersion(FormatError):
    """Another version of xetserve wrote a file; it may be intact."""


class IntegrityError(XetserveError):
    """Well-formed data does not have the expected hash or length."""


class BrokenStream(XetserveError):
    """The peer closed or reset the connection, or broke its protocol."""


class UpstreamError(XetserveError):
    """An upstream failed; the status is 502 unless a subclass sets another one.

    Args:
        code: the Hub's X-Error-Code, which is relayed to the client.
        headers: further fields of the Hub's response to relay to the client.
    """

    status = 502
    retriable = True  # whether a retry of the same request may succeed

    def __init__(
        self, message: str, *, code: str | None = None, headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        super().__init__(message)
        self.code = code
        self.headers = tuple(headers)


class UpstreamMissing(UpstreamError):
    """The upstream says that the resource does not exist; never retried."""

    status = 404
    retriable = False


class UpstreamTimeout(UpstreamError):
    """The upstream sent no response, or no further byte of it, in time."""

    status = 504


class UpstreamBusy(UpstreamError):
    """The upstream asks the server to retry later.

    Args:
        status: 429 or 503, as in the upstream's response.
        retry_after: seconds, from the upstream's Retry-After; None: the response has none.
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
    """This process has reached its limit of open files; a retry may succeed."""

    def __init__(self) -> None:
        super().__init__("this server has reached its limit of open files", retry_after=1.0)


class UpstreamDenied(UpstreamError):
    """The upstream refused the token with 401 or 403."""

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
    """The upstream refused the request, or its answer is unusable; a retry does not help."""

    retriable = False


class UpstreamTooLarge(UpstreamRefused):
    """The upstream's answer is too large; a request for a smaller range may succeed."""


class UpstreamUntrusted(UpstreamError):
    """The upstream's certificate cannot be verified; a retry does not help."""

    retriable = False


class UpstreamOffline(UpstreamError):
    """The server is in offline mode and has not stored the content."""

    status = 504
    retriable = False


class UpstreamLoop(UpstreamError):
    """The upstream answered 508: the request has passed through the upstream before."""

    status = 508
    retriable = False


class UrlExpired(UpstreamError):
    """A data host answered 403: the signed URL has expired, or it does not sign this range."""

    retriable = False


class RangeUnsatisfiable(UpstreamError):
    """The CAS answered 416: the range starts past the end of the file."""

    status = 416
    retriable = False
