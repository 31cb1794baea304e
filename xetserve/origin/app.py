"""The origin as one handler: a small Hub, a CAS and a data host made from a folder.

    /api/..., /{repo}/{resolve|raw}/..., /{repo}.git/info/lfs/..., /lfs/...     hub
    /, /{repo}, /{repo}/{tree|blob|commit|discussions}/...                hub, for people
    /v2/{repo}/manifests/..., /v2/{repo}/blobs/...                        hub, for ollama
    /v1/..., /v2/..., and the same without a version, for old clients     cas
    /data/{xorb hash}                                                     data
    /health, /healthz, /ready                                             for health checks
    /bridge/...                                                           bridge

A data host of its own, such as nginx, can serve {root}/xorbs/ at {data_url}/data/ instead, as the
same user.
"""

import errno
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from xetserve import __version__
from xetserve.base.permissions import describe_os_error
from xetserve.errors import FormatError, IntegrityError, RequestError
from xetserve.http.hosts import PROBES
from xetserve.http.messages import Request, Response, error_response, json_response
from xetserve.origin.api.auth import Gatekeeper, hub_error
from xetserve.origin.api.buckets import BucketsApi
from xetserve.origin.api.cas import CasApi
from xetserve.origin.api.data import DataApi
from xetserve.origin.api.hub import HubApi, read_json
from xetserve.origin.api.management import ManagementApi
from xetserve.origin.api.ollama import OllamaApi
from xetserve.origin.api.pages import PagesApi, is_page
from xetserve.origin.api.resolve import ResolveApi
from xetserve.origin.api.uploads import UploadApi
from xetserve.origin.api_path import READS, WRITES, ApiPath, parse_api_path
from xetserve.origin.faults import Misbehaviour, parse_faults
from xetserve.origin.store.commits import BUCKET, MODEL, REPO_TYPES_BY_PLURAL, RepoType
from xetserve.origin.store.library import Library
from xetserve.origin.store.repos import Repo
from xetserve.origin.store.signing import Signer

logger = logging.getLogger(__name__)

MAX_RECORDED_REQUESTS: Final = 100_000
MAX_FAULTS_SIZE: Final = 64 * 1024  # bytes of JSON

_CAS_ROOTS: Final = frozenset(
    (
        "v1",
        "v2",
        "reconstructions",
        "chunks",
        "xorbs",
        "xorb-grants",
        "shards",
        "files",
        "telemetry",
    )
)


class Origin:
    """A Hub and CAS on a folder.

    Args:
        root: the folder; it is made if it is missing. One process uses it at a time.
        tokens: token -> user name; none: anyone may read and write everything.
        url_lifetime, token_lifetime: of data URLs and of CAS tokens, in seconds.
        data_url: the start of data URLs; by default the address of the request.
        bridge_url: downloads of Xet files are redirected there, as on the real Hub; None: they are
            answered directly.
        test_controls: serve /_test/.
        is_draining: returns whether the server finishes its requests before it ends.
        clock: returns Unix seconds.

    Raises:
        ConfigError: the folder cannot be used.
    """

    def __init__(
        self,
        root: Path,
        *,
        tokens: Mapping[str, str] | None = None,
        url_lifetime: float = 3600.0,
        token_lifetime: float = 900.0,
        data_url: str | None = None,
        bridge_url: str | None = None,
        test_controls: bool = False,
        is_draining: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.library = Library(root)
        self._test_controls = test_controls
        self._is_draining = is_draining
        self._misbehaviour = Misbehaviour()
        self._requests: deque[dict[str, Any]] = deque(maxlen=MAX_RECORDED_REQUESTS)
        signer = Signer(self.library.load_secret(), clock)
        self._gatekeeper = Gatekeeper(tokens or {}, self.library.repos)
        self._management = ManagementApi(self._gatekeeper, self.library.repos)
        self._hub = HubApi(
            signer,
            token_lifetime=token_lifetime,
            misbehaviour=self._get_misbehaviour,
        )
        self._uploads = UploadApi(self.library, self._gatekeeper, signer, bridge_url=bridge_url)
        self._resolve = ResolveApi(
            self.library,
            signer,
            url_lifetime=url_lifetime,
            bridge_url=bridge_url,
            misbehaviour=self._get_misbehaviour,
        )
        self._buckets = BucketsApi(self._gatekeeper, self.library.repos, self._hub)
        self._ollama = OllamaApi(self._resolve)
        self._pages = PagesApi(self._gatekeeper, self.library.repos)
        self._cas = CasApi(
            self.library,
            signer,
            url_lifetime=url_lifetime,
            data_url=data_url,
            misbehaviour=self._get_misbehaviour,
        )
        self._data = DataApi(self.library.xorbs, signer, self._get_misbehaviour)

    def _get_misbehaviour(self) -> Misbehaviour:
        return self._misbehaviour

    def set_tokens(self, tokens: Mapping[str, str]) -> None:
        """Replace the accepted tokens, token -> user name; none: anyone may do everything."""
        self._gatekeeper.set_tokens(tokens)

    async def aclose(self) -> None:
        """Do nothing: no file is open between requests, and the folder is always consistent."""

    async def handle(self, request: Request) -> Response:
        """Answer a request."""
        parts = request.raw_path.removeprefix("/").split("/")
        if parts[0] == "_test":
            return await self._answer(self._test(request, parts[1:]))
        if request.raw_path in PROBES and request.method in ("GET", "HEAD"):
            return self._answer_probe(request)
        kind = _kind_of(parts)
        misbehaviour = self._misbehaviour
        await misbehaviour.wait(kind)
        response = misbehaviour.make_burst_response(kind)
        if response is None:
            response = await self._answer(self._route(kind, request, parts))
        if self._test_controls:
            self._requests.append(_describe_request(request, kind, response.status))
        return response

    def _answer_probe(self, request: Request) -> Response:
        """Answer a health check, as a server does."""
        not_stored = ("Cache-Control", "no-store")
        if request.raw_path != "/ready":
            return json_response(200, {"status": "ok", "version": __version__}, [not_stored])
        if self._is_draining():
            return json_response(503, {"status": "draining"}, [not_stored, ("Retry-After", "1")])
        return json_response(200, {"status": "ready"}, [not_stored])

    async def _answer(self, work: Awaitable[Response]) -> Response:
        """Await a response; turn an error of the client into one, too."""
        try:
            return await work
        except RequestError as exc:
            return error_response(exc.status, str(exc), exc.headers)
        except FormatError as exc:
            return error_response(400, str(exc))
        except IntegrityError as exc:
            logger.error("%s", exc)
            return error_response(500, str(exc))
        except (TimeoutError, ConnectionError):  # of the client, and kinds of OSError
            raise
        except OSError as exc:
            logger.error("%s", describe_os_error(exc, self.library.root))
            is_full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
            status, text = (
                (507, "is full") if is_full else (500, "cannot be used; its log has details")
            )
            failure = hub_error(status, f"the disk of the origin {text}")
            return error_response(failure.status, str(failure), failure.headers)

    async def _route(self, kind: str, request: Request, parts: list[str]) -> Response:
        _refuse_other_sites(request)
        if kind == "cas":
            return await self._route_cas(request, parts)
        if kind == "data":
            return await self._route_data(request, parts)
        if kind == "bridge" or parts[0] == "lfs":
            return await self._route_signed(request, parts)
        if _is_registry(parts):
            return await self._route_registry(request, [unquote(part) for part in parts[1:]])
        if parts[0] == "api":
            return await self._route_api(request, [unquote(part) for part in parts[1:]])
        return await self._route_files(request, parts)

    async def _route_cas(self, request: Request, parts: list[str]) -> Response:
        version = 1
        if parts[0] in ("v1", "v2"):
            version = int(parts[0][1])
            parts = parts[1:]
        match request.method, parts:
            case "GET", ["reconstructions", name]:
                return await self._cas.reconstruct(request, name, version)
            case "GET" | "POST", ["reconstructions"] if version == 1:
                return await self._cas.reconstruct_several(request)
            case "HEAD", ["files", name]:
                return await self._cas.head_file(request, name)
            case "HEAD", ["xorbs", _, name]:
                return await self._cas.head_xorb(request, name)
            case "POST", ["xorbs", _, name]:
                return await self._cas.post_xorb(request, name)
            case "GET", ["chunks", _, _]:
                return await self._cas.find_chunk(request)
            case "POST", ["shards"]:
                return await self._cas.post_shard(request, version)
            case "POST", ["telemetry"]:
                return json_response(200, {})
        # For xorb-grants too, which clients take for "upload through the CAS".
        raise RequestError(404, "no such CAS call")

    async def _route_data(self, request: Request, parts: list[str]) -> Response:
        if request.method != "GET":
            raise RequestError(403, "the signature is for GET")
        if len(parts) != 2:
            raise RequestError(404, "no such data")
        return await self._data.get(request, parts[1])

    async def _route_signed(self, request: Request, parts: list[str]) -> Response:
        """Serve /bridge/{type}s/{id}/{sha256} and /lfs/{type}s/{id}/{sha256}."""
        kind = REPO_TYPES_BY_PLURAL.get(parts[1]) if len(parts) == 4 else None
        if kind is not None:
            repo_id = unquote(parts[2])
            if parts[0] == "bridge" and request.method in ("GET", "HEAD"):
                return await self._resolve.bridge(request, kind, repo_id, parts[3])
            if parts[0] == "lfs" and request.method == "PUT":
                return await self._uploads.lfs_put(request, kind, repo_id, parts[3])
        raise RequestError(404, "no such object")

    async def _route_registry(self, request: Request, parts: list[str]) -> Response:
        owner, name, what, wanted = parts
        if request.method not in ("GET", "HEAD"):
            raise RequestError(404, "no such registry call")
        repo = await self._gatekeeper.open_repo(
            request.headers, MODEL, f"{owner}/{name}", content=True
        )
        if what == "manifests":
            return await self._ollama.manifest(repo, wanted)
        return await self._ollama.blob(request, repo, wanted)

    async def _route_api(self, request: Request, parts: list[str]) -> Response:
        match request.method, parts:
            case "GET", ["whoami-v2"]:
                return self._management.whoami(request)
            case "POST", ["repos", "create"]:
                return await self._management.create(request)
            case "DELETE", ["repos", "delete"]:
                return await self._management.delete(request)
            case _, ["buckets", *rest]:
                return await self._buckets.answer(request, rest)
            case "GET", [plural] if plural in REPO_TYPES_BY_PLURAL:
                return await self._management.list_repos(request, REPO_TYPES_BY_PLURAL[plural])
            case "POST", ["validate-yaml"]:
                await read_json(request)
                return json_response(200, {"errors": [], "warnings": []})
        kind = REPO_TYPES_BY_PLURAL.get(parts[0]) if parts else None
        path = parse_api_path(parts[1:])
        if kind is None or path is None:
            raise RequestError(404, "no such API call")
        write = path.verb in WRITES or (path.verb, path.rest) == ("auth-check", ("write",))
        repo = await self._gatekeeper.open_repo(
            request.headers, kind, path.repo_id, write=write, content=path.verb in READS
        )
        return await self._route_repo(request, repo, path)

    async def _route_repo(self, request: Request, repo: Repo, path: ApiPath) -> Response:
        hub, uploads = self._hub, self._uploads
        revision = path.rest[0] if path.rest else ""
        # Clients send names of branches and tags encoded, or with plain slashes.
        name = "/".join(path.rest)
        match request.method, path.verb:
            case "GET" | "HEAD", "":
                return await hub.info(request, repo, "main")
            case "GET" | "HEAD", "revision":
                return await hub.info(request, repo, name)
            case "GET", "tree":
                return await hub.tree(request, repo, revision, "/".join(path.rest[1:]))
            case "POST", "paths-info":
                return await hub.paths_info(request, repo, name)
            case "GET", "auth-check":
                return json_response(200, {})  # callers that may not read do not get here
            case "GET", "refs":
                return hub.refs(request, repo)
            case "PUT", "settings":
                return await self._management.change_settings(request, repo)
            case "GET", "user-access-request" if len(path.rest) == 1:
                return self._management.list_access(repo, name)
            case "POST", "user-access-request" if name in ("grant", "handle"):
                return await self._management.change_access(request, repo, name)
            case "GET", "commits":
                return await hub.commits(repo, name)
            case "GET", "xet-read-token":
                return await hub.token(request, repo, name, "read")
            case "GET", "xet-write-token":
                return await hub.token(request, repo, name, "write")
            case "POST", "preupload":
                return await uploads.preupload(request, repo, name)
            case "POST", "commit":
                return await uploads.commit(request, repo, name)
            case "POST", "branch":
                return await hub.add_branch(request, repo, name)
            case "POST", "tag":
                return await hub.add_tag(request, repo, name)
            case "DELETE", "branch":
                return await hub.delete_ref(repo, f"refs/heads/{name}")
            case "DELETE", "tag":
                return await hub.delete_ref(repo, f"refs/tags/{name}")
        raise RequestError(404, "no such API call")

    async def _route_files(self, request: Request, parts: list[str]) -> Response:
        """Serve / and the paths below a repository's own URL: files, pages, its LFS endpoint."""
        if request.method in ("GET", "HEAD") and parts == [""]:
            return await self._pages.index(request)
        kind = REPO_TYPES_BY_PLURAL.get(parts[0], MODEL)
        if kind is not MODEL:
            parts = parts[1:]
        match request.method, parts[2:]:
            case "GET" | "HEAD", ["resolve", *path] if kind is BUCKET and path:
                repo = await self._gatekeeper.open_repo(request.headers, kind, "/".join(parts[:2]))
                return await self._resolve.resolve(request, repo, "main", unquote("/".join(path)))
        for id_size in (2, 1):
            repo_id = unquote("/".join(parts[:id_size]))
            match request.method, parts[id_size:]:
                case "GET" | "HEAD", ["resolve" | "raw" as what, revision, *path] if path:
                    repo = await self._gatekeeper.open_repo(
                        request.headers, kind, repo_id, content=True
                    )
                    answer = self._resolve.raw if what == "raw" else self._resolve.resolve
                    name = unquote("/".join(path))
                    return await answer(request, repo, unquote(revision), name)
                case "POST", ["info", "lfs", "objects", "batch"] if repo_id.endswith(".git"):
                    return await self._lfs_batch(request, kind, repo_id.removesuffix(".git"))
                case "GET" | "HEAD", page if is_page(page) and repo_id.count("/") == id_size - 1:
                    repo = await self._gatekeeper.open_repo(request.headers, kind, repo_id)
                    return await self._pages.show(request, repo, [unquote(part) for part in page])
        raise RequestError(404, "no such page")

    async def _lfs_batch(self, request: Request, kind: RepoType, repo_id: str) -> Response:
        value = await read_json(request)
        write = value.get("operation") != "download"
        repo = await self._gatekeeper.open_repo(
            request.headers, kind, repo_id, write=write, content=True
        )
        return await self._uploads.lfs_batch(request, repo, value)

    async def _test(self, request: Request, parts: list[str]) -> Response:
        """Serve /_test/: set faults, and return the recorded requests."""
        if self._test_controls:
            match request.method, parts:
                case "POST", ["faults"]:
                    faults = parse_faults(await request.body.read(MAX_FAULTS_SIZE))
                    self._misbehaviour = Misbehaviour(faults)
                    return json_response(200, {})
                case "GET", ["requests"]:
                    return json_response(200, list(self._requests))
                case "DELETE", ["requests"]:
                    self._requests.clear()
                    return json_response(200, {})
        raise RequestError(404, "no such page")


def _refuse_other_sites(request: Request) -> None:
    """Refuse a change that a page of another site has a browser ask for.

    Without tokens a request needs nothing that such a page lacks, and a browser on this machine
    reaches 127.0.0.1. Only browsers send the field (Fetch Metadata, W3C).

    Raises:
        RequestError: 403.
    """
    site = request.headers.get("sec-fetch-site", "none")
    if request.method not in ("GET", "HEAD") and site not in ("none", "same-origin"):
        raise RequestError(403, "a page of another site may change nothing here")


def _kind_of(parts: list[str]) -> str:
    root = parts[0]
    if root in ("data", "bridge"):
        return root
    return "cas" if root in _CAS_ROOTS and not _is_registry(parts) else "hub"


def _is_registry(parts: list[str]) -> bool:
    """Return whether a path is one that ollama requests; the CAS has no such paths."""
    return len(parts) == 5 and parts[0] == "v2" and parts[3] in ("manifests", "blobs")


def _describe_request(request: Request, kind: str, status: int) -> dict[str, Any]:
    headers = request.headers
    return {
        "method": request.method,
        "target": request.target,
        "path": request.raw_path,
        "kind": kind,
        "authorization": headers.get("authorization"),
        "cookie": headers.get("cookie"),
        "range": headers.get("range"),
        "user_agent": headers.get("user-agent"),
        "status": status,
    }
