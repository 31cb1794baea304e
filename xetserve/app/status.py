"""/health, /ready, and the page at /."""

from dataclasses import dataclass
from html import escape
from typing import Final

from xetserve import __version__
from xetserve.http.messages import Request, Response, json_response

# What is true now says nothing of later. Without a word, caches may guess, or answer while we do not (RFC 9111, 4.2).
_NOT_STORED: Final = ("Cache-Control", "no-store")

_PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>xetserve</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem; }}
pre {{ overflow-x: auto; padding: .75rem 1rem; border: 1px solid; border-radius: .4rem; }}
table {{ border-collapse: collapse; }}
td {{ padding: .2rem 1rem .2rem 0; vertical-align: top; }}
</style>
<h1>xetserve {version}</h1>
<p>Files of a Xet-backed Hub over plain HTTP: rebuilt, verified and streamed while you wait.</p>
<h2>Download a file</h2>
<pre>curl -f -H "Authorization: Bearer $HF_TOKEN" \\
     {base}/download/OWNER/REPO/model.gguf -o model.gguf</pre>
<pre>wget --header="Authorization: Bearer $HF_TOKEN" \\
     {base}/download/OWNER/REPO/folder/model.safetensors</pre>
<p>Datasets and spaces, branches, tags, commits and pull requests:</p>
<pre>curl -f -H "Authorization: Bearer $HF_TOKEN" -OJ \\
     "{base}/download/OWNER/REPO/data.parquet?type=dataset&amp;revision=refs/pr/1"</pre>
<h2>Download by Xet hash</h2>
<pre>curl -f -H "Authorization: Bearer $HF_TOKEN" \\
     "{base}/download-hash/HASH?repo=OWNER/REPO" -o file.bin</pre>
<h2>Endpoints</h2>
<table>
<tr><td><code>/download/{{owner}}/{{repo}}/{{path}}</code><td>a file; <code>?revision=</code>,
    <code>?type=model|dataset|space</code>
<tr><td><code>/download-hash/{{hash}}</code><td>a file by its Xet hash; <code>?repo=</code>,
    <code>?type=</code>, <code>?revision=</code>
<tr><td><code>/health</code><td>is the server up
<tr><td><code>/ready</code><td>does it take new clients
</table>
<p>A transfer that ends without an error is the file: every chunk is hashed, and the end is
withheld until the whole matches the file's hash.</p>
</html>
"""


def get_health(request: Request) -> Response:
    """Say that the process answers."""
    return json_response(200, {"status": "ok", "version": __version__}, [_NOT_STORED])


@dataclass(slots=True)
class Readiness:
    """Whether new clients are welcome; changed by whoever knows."""

    is_draining: bool = False


def get_ready(request: Request, readiness: Readiness) -> Response:
    """Say whether a load balancer should send clients here: 200, or 503 once the server drains."""
    if readiness.is_draining:
        return json_response(503, {"status": "draining"}, [("Retry-After", "1"), _NOT_STORED])
    return json_response(200, {"status": "ready"}, [_NOT_STORED])


def get_usage(request: Request) -> Response:
    """Give the page that tells how to use this server, in the words of the host that was asked for."""
    page = _PAGE.format(version=escape(__version__), base=escape(request.base_url))
    headers = [
        ("Content-Type", "text/html; charset=utf-8"),
        ("Cache-Control", "no-cache"),  # it may change with the version
        ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"),
    ]
    return Response(200, headers, page.encode())
