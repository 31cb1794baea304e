"""The setting base_path: the server's URLs begin with a path, as those of other services on the
same host do.

    a proxy that leaves the path        GET /hf/o/n/resolve/main/a    it is removed here
    a proxy that removes the path       GET /o/n/resolve/main/a       X-Forwarded-Prefix: /hf, or
                                                                      base_path alone
    in both cases                       links begin with https://host/hf
"""

from xetserve.http.messages import Handler, Request, Response


def serve_below(handler: Handler, base_path: str) -> Handler:
    """Return a handler that removes base_path from requests, and lets links begin with it.

    Requests without it are answered as well, since a proxy may have removed it. If a proxy says in
    X-Forwarded-Prefix what it has removed, the request stays as it is: then an owner of
    repositories may be called like the path.
    """

    async def handle(request: Request) -> Response:
        if not request.prefix:
            path, mark, query = request.target.partition("?")
            if path == base_path:  # the page has relative links, so it needs the slash
                location = f"{base_path}/{mark}{query}"  # to no host: hosts is checked later
                return Response(308, [("Location", location), ("Cache-Control", "no-store")])
            if path.startswith(f"{base_path}/"):
                request.target = path.removeprefix(base_path) + mark + query
            request.prefix = base_path
        return await handler(request)

    return handle if base_path else handler
