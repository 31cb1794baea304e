"""The routes of the server. To add one, write a row here and one in docs/endpoints.md.

Patterns are explained in route_table.py. A handler takes a Call and returns a Response.
"""

from dataclasses import replace
from typing import Any, Final

from xetserve.app.download.service import FileService
from xetserve.app.hub import git_http, git_lfs
from xetserve.app.hub.api import HubService
from xetserve.app.hub.links import advise, read_link_path, redirect_link
from xetserve.app.hub.paths import (
    find_api_verb,
    read_bucket_path,
    read_file_path,
    read_git_path,
    read_hub_path,
    read_object_path,
)
from xetserve.app.hub.writes import UPLOADS_REFUSED
from xetserve.app.native.cas_api import CasService, read_name
from xetserve.app.route_table import Auth, Call, MatchedPath, Route, RouteTable, no_target
from xetserve.app.status.service import StatusService
from xetserve.errors import UpstreamError, UpstreamOffline
from xetserve.http.messages import Response
from xetserve.upstream.hub.entry import KINDS_BY_PLURAL


def make_routes(
    status: StatusService,
    hub: HubService,
    cas: CasService | None,
    files: FileService,
    *,
    allow_anonymous: bool,
) -> RouteTable:
    """Build the table.

    Args:
        cas: None if native clients are not served.
        allow_anonymous: serve the download routes without a token, too.
    """
    hub_routes = [
        replace(each, no_writes=UPLOADS_REFUSED) if each.name == "api" else each
        for each in list_hub_routes(hub)
    ]
    if cas is not None:  # answers of the Hub's URLs depend on whether the client knows Xet
        hub_routes = [replace(each, vary=("User-Agent", "Accept")) for each in hub_routes]
    routes = [
        *list_status_routes(status),
        *hub_routes,
        *([] if cas is None else list_cas_routes(cas)),
        *list_download_routes(files, Auth.OPTIONAL if allow_anonymous else Auth.REQUIRED),
    ]
    return RouteTable(routes, find_api_verb, advise)


STATUS_ROUTES: Final = frozenset({"page", "health", "ready", "metrics", "status", "operator"})


def list_status_routes(status: StatusService) -> list[Route[Any]]:
    """Return the routes about the server itself."""
    return [
        Route("page", "GET HEAD", "/", Auth.NONE, no_target, status.answer_page),
        Route("health", "GET HEAD", "/health", Auth.NONE, no_target, status.answer_health),
        Route("health", "GET HEAD", "/healthz", Auth.NONE, no_target, status.answer_health),
        Route("ready", "GET HEAD", "/ready", Auth.NONE, no_target, status.answer_ready),
        Route("metrics", "GET HEAD", "/metrics", Auth.OPERATOR, no_target, status.answer_metrics),
        Route("status", "GET HEAD", "/status", Auth.OPERATOR, no_target, status.answer_status),
        Route("operator", "POST", "/operator", Auth.NONE, no_target, status.answer_operator),
    ]


def list_hub_routes(hub: HubService) -> list[Route[Any]]:
    """Return the routes of the Hub's own URLs."""
    return [
        Route("resolve", "GET HEAD",
              "/[datasets/|spaces/|kernels/]{id}/resolve/{revision}/{path...}",
              Auth.OPTIONAL, read_file_path, hub.answer_file),
        Route("resolve", "GET HEAD", "/buckets/{owner}/{name}/resolve/{path...}",
              Auth.OPTIONAL, read_bucket_path, hub.answer_file),
        # The commit id after the name shows that the name has no owner.
        Route("resolve", "GET HEAD",
              "/api/resolve-cache/{models|datasets|spaces|kernels}/{name}/{commit}/{path...}",
              Auth.OPTIONAL, read_file_path, hub.answer_file),
        Route("resolve", "GET HEAD",
              "/api/resolve-cache/{models|datasets|spaces|kernels}/{owner}/{name}/{revision}/{path...}",
              Auth.OPTIONAL, read_file_path, hub.answer_file),
        Route("link", "GET HEAD", "/[datasets/|spaces/|kernels/]{id}/blob/{revision}/{path...}",
              Auth.NONE, read_link_path, redirect_link),
        Route("lfs", "POST", "/[datasets/|spaces/|kernels/]{id}.git/info/lfs/objects/batch",
              Auth.BASIC, read_object_path, hub.lfs.answer_batch, refuse=git_lfs.refuse),
        Route("lfs", "GET HEAD", "/[datasets/|spaces/|kernels/]{id}.git/info/lfs/objects/{oid}",
              Auth.BASIC, read_object_path, hub.lfs.answer_object),
        Route("registry", "GET HEAD", "/v2/", Auth.NONE, no_target, hub.registry.answer_ping),
        Route("git", "GET", "/[datasets/|spaces/|kernels/]{id}/info/refs",
              Auth.BASIC, read_git_path, hub.git.answer_refs, refuse=git_http.refuse),
        Route("git", "POST", "/[datasets/|spaces/|kernels/]{id}/git-upload-pack",
              Auth.BASIC, read_git_path, hub.git.answer_pack, refuse=git_http.refuse),
        Route("git", "POST", "/[datasets/|spaces/|kernels/]{id}/git-receive-pack",
              Auth.BASIC, read_git_path, hub.git.refuse_push, refuse=git_http.refuse),
        Route("registry", "GET HEAD", "/v2/{owner}/{name}/manifests/{tag}",
              Auth.OPTIONAL, read_object_path, hub.registry.answer_manifest),
        Route("registry", "GET HEAD", "/v2/{owner}/{name}/blobs/{digest}",
              Auth.OPTIONAL, read_object_path, hub.registry.answer_blob),
        Route("raw", "GET HEAD", "/[datasets/|spaces/|kernels/]{id}/raw/{revision}/{path...}",
              Auth.OPTIONAL, read_hub_path, hub.answer_raw),
        Route("login", "POST", "/oauth/device", Auth.NONE, no_target, hub.answer_login),
        Route("login", "POST", "/oauth/token", Auth.NONE, no_target, hub.answer_login),
        Route("manage", "GET HEAD", "/api/account",
              Auth.REQUIRED, no_target, hub.management.answer_account),
        Route("manage", "POST PUT DELETE", "/api/repo",
              Auth.REQUIRED, no_target, hub.management.answer_repo),
        Route("manage", "POST", "/api/repos/create",
              Auth.OPTIONAL, read_hub_path, hub.answer_command),
        Route("manage", "POST", "/api/repos/move",
              Auth.OPTIONAL, read_hub_path, hub.answer_command),
        Route("manage", "DELETE", "/api/repos/delete",
              Auth.OPTIONAL, read_hub_path, hub.answer_command),
        Route("manage", "PUT", "/api/{models|datasets|spaces|kernels}/{id}/settings",
              Auth.OPTIONAL, read_hub_path, hub.answer_command),
        Route("api", "GET HEAD", "/api/.../tree/{revision}",
              Auth.OPTIONAL, read_hub_path, hub.answer_tree),
        Route("api", "POST", "/api/.../paths-info/{revision}",
              Auth.OPTIONAL, read_hub_path, hub.answer_question),
        Route("api", "GET HEAD", "/api/.../xet-read-token/{revision}",
              Auth.OPTIONAL, read_hub_path, hub.answer_read_token),
        Route("api", "GET HEAD", "/api/.../xet-write-token/{revision}",
              Auth.OPTIONAL, read_hub_path, hub.refuse_write_token),
        Route("api", "GET HEAD", "/api/...",
              Auth.OPTIONAL, read_hub_path, hub.answer_question),
    ]  # fmt: skip


def list_cas_routes(cas: CasService) -> list[Route[Any]]:
    """Return the routes of the CAS, and of the xorb data that its answers refer to."""
    return [
        Route("reconstruction", "GET", "/v1/reconstructions/{hash+}",
              Auth.CAS, read_name, cas.answer_v1),
        Route("reconstruction", "GET", "/v2/reconstructions/{hash+}",
              Auth.CAS, read_name, cas.answer_v2),
        Route("reconstruction", "GET", "/reconstructions/{hash+}",
              Auth.CAS, read_name, cas.answer_v1),
        Route("reconstruction", "GET POST", "/v1/reconstructions",
              Auth.CAS, no_target, cas.answer_batch),
        Route("reconstruction", "GET POST", "/reconstructions",
              Auth.CAS, no_target, cas.answer_batch),
        Route("reconstruction", "HEAD", "/v1/files/{hash+}",
              Auth.CAS, read_name, cas.answer_size),
        Route("reconstruction", "POST", "/v1/telemetry",
              Auth.NONE, no_target, cas.answer_telemetry),
        Route("xorb", "GET HEAD", "/xorbs/{hash+}",
              Auth.NONE, read_name, cas.answer_xorb),
    ]  # fmt: skip


def list_download_routes(files: FileService, auth: Auth) -> list[Route[Any]]:
    """Return the routes of /download and /download-hash."""

    async def answer_file(call: Call[tuple[str | None, str, str, list[str]]]) -> Response:
        return await files.get_file(call.request, *call.target, call.token)

    async def answer_hash(call: Call[str]) -> Response:
        try:
            return await files.get_by_hash(call.request, call.target, call.token)
        except UpstreamError as exc:
            if "repo" in call.request.query or isinstance(exc, UpstreamOffline):
                raise
            return files.refuse_hash(exc, call.request)

    return [
        Route("download", "GET HEAD",
              "/download/[models/|datasets/|spaces/|kernels/]{owner}/{name}/{path...}",
              auth, _read_download_path, answer_file),
        Route("download-hash", "GET HEAD", "/download-hash/{hash}",
              auth, _read_hash, answer_hash),
    ]  # fmt: skip


def _read_download_path(path: MatchedPath) -> tuple[str | None, str, str, list[str]]:
    (owner,), (name,) = path.decode("owner"), path.decode("name")
    kind = path.values.get("kind")
    return kind and KINDS_BY_PLURAL[kind], owner, name, path.decode("path")


def _read_hash(path: MatchedPath) -> str:
    return path.decode("hash")[0]
