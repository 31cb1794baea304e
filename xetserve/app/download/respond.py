"""From a file and a request to a response: conditions, then ranges, then the content coding."""

import math
import secrets
import time

from xetserve.app.download.body import no_blocks
from xetserve.app.download.content import Content, Opened
from xetserve.app.download.multipart_body import MultipartBody
from xetserve.app.download.representation import Representation
from xetserve.app.download.zstd_body import MAX_RATIO, MIN_SIZE, Compressors, measure_ratio
from xetserve.errors import RequestError
from xetserve.http.conditions import Verdict, allows_range, check_conditions
from xetserve.http.cors import add_vary
from xetserve.http.messages import Request, Response
from xetserve.http.multipart import ByteRanges
from xetserve.http.negotiation import choose_coding
from xetserve.http.ranges import (
    Span,
    UnsatisfiableRange,
    format_content_range,
    format_unsatisfied_range,
    is_from_start,
    is_resumption,
    parse_ranges,
)


class FileAnswers:
    """Answers GET and HEAD for files.

    Args:
        compressors: None: files are never compressed.
        with_length: send whole files with Content-Length, too. A file that fails verification is
            then cut before its last block, not before the last chunk of the chunked coding.
    """

    def __init__(self, compressors: Compressors | None, *, with_length: bool = False) -> None:
        self._compressors = compressors
        self._with_length = with_length

    def check(self, request: Request, file: Representation) -> Response | None:
        """Check the conditions of a request (RFC 9110, 13.2); None: serve the file.

        Raises:
            RequestError: 412, a condition fails.
        """
        validators = file.get_validators(takes_zstd=self._takes_zstd(request, file))
        verdict, etag = check_conditions(request.headers, validators, time.time())
        if verdict is Verdict.FAILED:
            raise RequestError(
                412, "the file is not the one that the conditions of the request name"
            )
        if verdict is Verdict.NOT_MODIFIED:
            return self._finish(Response(304, file.make_cache_fields(etag)))
        return None

    def answer_head(self, request: Request, file: Representation) -> Response:
        """Return the answer to a GET of the whole, without the body.

        Only the data shows whether it would be compressed. Where it might be, there is no
        Content-Length, which would have to be exact (RFC 9110, 8.6). X-Linked-Size has the size in
        any case.
        """
        length = None if self._takes_zstd(request, file) else file.size
        return self._finish(Response(200, file.make_fields(), no_blocks(), length, chunked=True))

    async def answer_get(
        self, request: Request, file: Representation, content: Content
    ) -> Response:
        """Return the whole file, a range, or several ranges.

        Raises:
            RequestError: 416, no range lies in the file; 409, the client resumes a file that may be
                damaged.
            UpstreamError, IntegrityError: the content cannot be read.
        """
        if self._with_length and file.size == 0 and _asks_from_start(request):
            # Some Hub clients request the first bytes to learn a size. They do not accept a 416,
            # and read the size behind the slash.
            headers = [*file.make_fields(), ("Content-Range", format_unsatisfied_range(0))]
            return self._finish(Response(200, headers))
        spans = _select_spans(request, file)
        if spans is None:
            if file.size == 0 and file.file_hash is not None:
                return self._finish(Response(200, file.make_fields()))
            return self._finish(self._make_whole(request, file, await content.open(None)))
        opened = await content.open(spans[0])
        if opened.span is None or file.size is None:
            return self._finish(self._make_whole(request, file, opened))
        headers = file.make_fields()
        if len(spans) == 1:
            headers.append(("Content-Range", format_content_range(spans[0], file.size)))
            return self._finish(Response(206, headers, opened.body, spans[0].size))
        frame = ByteRanges(spans, file.size, file.media_type, secrets.token_hex(16))
        headers = [field for field in headers if field[0] != "Content-Type"]
        headers.append(("Content-Type", frame.content_type))
        body = MultipartBody(frame, content, opened.body)
        return self._finish(Response(206, headers, body, frame.length))

    def _make_whole(self, request: Request, file: Representation, opened: Opened) -> Response:
        is_xet = opened.reader is not None and not self._with_length
        trailers = {"X-Xet-Verified": opened.get_verified_hash} if is_xet else {}
        compressors = self._compressors
        # Measuring a sample needs a compressor, too.
        if compressors and not compressors.is_full and self._takes_zstd(request, file):
            ratio = opened.reader.packed_ratio if opened.reader else measure_ratio(opened.sample)
            if ratio is not None and ratio <= MAX_RATIO:
                body = compressors.compress(opened.body, opened.length)
                return Response(200, file.make_zstd_fields(), body, trailers=trailers)
        return Response(
            200, file.make_fields(), opened.body, opened.length, chunked=is_xet, trailers=trailers
        )

    def _takes_zstd(self, request: Request, file: Representation) -> bool:
        """Return whether the whole file may be compressed for a client.

        An HTTP/1.0 client needs a length to notice a failure, so it gets no coding.
        """
        return (
            self._compressors is not None
            and request.http_version != "1.0"
            and (file.size is None or file.size >= MIN_SIZE)
            and choose_coding(request.headers, ("zstd",)) == "zstd"
        )

    def _finish(self, response: Response) -> Response:
        if self._compressors is not None:
            add_vary(response.headers, "Accept-Encoding")
        return response


def wants_part(request: Request) -> bool:
    """Return whether a request has a Range field that counts: only GET does (RFC 9110, 14.2)."""
    return request.method == "GET" and "range" in request.headers


def _refuse_part(file: Representation, value: str) -> RequestError:
    """Make the 409 for a range of a file that was cut.

    A client that resumes has a part of the damaged file: to wait is no help, so it is not told to.
    """
    text = "the file was cut recently because it was damaged"
    if is_resumption(value) or file.retry_after is None:
        return RequestError(409, f"{text}: start again from the beginning, over one connection")
    seconds = max(1, math.ceil(file.retry_after))
    return RequestError(
        409,
        f"{text}: if you have no part of it, ask again in {seconds} s, when the file may have been "
        "verified again; otherwise start again from the beginning",
        [("Retry-After", str(seconds))],
    )


def _asks_from_start(request: Request) -> bool:
    values = request.headers.get_all("range")
    return wants_part(request) and len(values) == 1 and is_from_start(values[0])


def _select_spans(request: Request, file: Representation) -> list[Span] | None:
    """Return the requested ranges; None: the whole.

    Raises:
        RequestError: 416; 409, the client resumes a file that may be damaged.
    """
    values = request.headers.get_all("range")
    # Range is not a list: several fields are ignored (RFC 9110, 5.3).
    if len(values) != 1 or not wants_part(request) or file.size is None:
        return None
    if file.is_suspect or (file.was_cut and is_resumption(values[0])):
        # aria2 downloads over several connections and requests the range that was cut again. The
        # whole in place of a range is no way out: wget would discard the bytes that it has, and
        # append the rest.
        raise _refuse_part(file, values[0])
    if not allows_range(request.headers, file.etag, file.last_modified, time.time()):
        return None  # the client has a part of something else
    try:
        return parse_ranges(values[0], file.size)
    except UnsatisfiableRange:
        raise RequestError(
            416,
            f"the file has {file.size} bytes",
            [("Content-Range", format_unsatisfied_range(file.size))],
        ) from None
