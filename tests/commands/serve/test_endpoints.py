"""What is listened on, by the settings."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers import Certificates, make_certificates
from xetserve.commands.serve.endpoints import Endpoints, check_idle_exit, open_endpoints
from xetserve.config.load import load_config
from xetserve.errors import ConfigError
from xetserve.http.messages import Headers, Request
from xetserve.ops.socket_activation import Inherited


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def tls(certificates: Certificates) -> dict[str, str]:
    return {"tls_cert": str(certificates.chain), "tls_key": str(certificates.key)}


class Opener:
    """Opens endpoints, and closes them at the end."""

    def __init__(self) -> None:
        self.inherited: list[Inherited] = []
        self.opened: list[Endpoints] = []

    def __call__(
        self,
        settings: dict[str, str],
        *,
        with_tls: bool = True,
        environ: dict[str, str] | None = None,
    ) -> Endpoints:
        config = load_config({"host": "127.0.0.1", "port": "0", **settings}, {})
        inherited = list(self.inherited)
        opened = open_endpoints(config, inherited, environ or {}, with_tls=with_tls)
        self.opened.append(opened)
        return self.opened[-1]


@pytest.fixture
def open_by() -> Iterator[Opener]:
    opener = Opener()
    yield opener
    for each in opener.opened:
        for sock in each.sockets:
            sock.close()


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


async def where(found: Endpoints, index: int) -> str | None:
    """Where a redirect leads to."""
    handler = found.all[index].handler
    assert handler is not None
    response = await handler(Request("GET", "/", Headers([("host", "a")])))
    return Headers(response.headers).get("location")


def test_plain_http_on_a_port(open_by: Opener) -> None:
    found = open_by({})
    (one,) = found.all
    assert (one.tls, one.handler, found.tls, found.files) == (None, None, None, [])
    assert found.describe() == f"http://127.0.0.1:{port_of(one.sock)}"


async def test_tls_with_redirects_and_a_unix_socket(
    open_by: Opener, tls: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    found = open_by({**tls, "redirect_port": "0", "unix_socket": str(path)})
    main, redirect, unix = found.all
    assert main.tls is found.tls is not None
    assert (redirect.tls, unix.tls, unix.handler) == (None, None, None)
    assert found.describe() == (
        f"https://127.0.0.1:{port_of(main.sock)}, "
        f"http://127.0.0.1:{port_of(redirect.sock)} (redirects), unix:{path}"
    )
    assert await where(found, 1) == f"https://a:{port_of(main.sock)}/"
    found.remove_files()
    assert not path.exists()


async def test_redirects_may_lead_to_another_port(open_by: Opener, tls: dict[str, str]) -> None:
    found = open_by({**tls, "redirect_port": "0", "redirect_target": "443"})
    assert await where(found, 1) == "https://a/"


def test_without_tls_its_settings_are_left_alone(open_by: Opener, tls: dict[str, str]) -> None:
    found = open_by({**tls, "redirect_port": "0"}, with_tls=False)
    (one,) = found.all
    assert one.tls is found.tls is None


def test_what_other_machines_reach(open_by: Opener, tmp_path: Path) -> None:
    assert open_by({"unix_socket": str(tmp_path / "socket")}).describe_exposed() == ""
    found = open_by({"host": "0.0.0.0", "unix_socket": str(tmp_path / "other")})
    assert found.describe_exposed() == f"http://0.0.0.0:{port_of(found.sockets[0])}"


def test_a_unix_socket_alone(open_by: Opener, tls: dict[str, str], tmp_path: Path) -> None:
    found = open_by({**tls, "port": "off", "unix_socket": str(tmp_path / "socket")})
    (one,) = found.all
    assert one.sock.family == socket.AF_UNIX


@pytest.fixture
def inherited(open_by: Opener, tmp_path: Path) -> Iterator[dict[str, socket.socket]]:
    """Sockets that were handed over: one for each use, and a Unix one."""
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "inherited"))
    unix.listen()
    socks = {
        "http": socket.create_server(("127.0.0.1", 0)),
        "redirect": socket.create_server(("127.0.0.1", 0)),
        "unix": unix,
    }
    open_by.inherited = [Inherited(name, sock) for name, sock in socks.items()]
    yield socks
    for sock in socks.values():
        sock.close()


async def test_inherited_sockets_take_the_place_of_others(
    open_by: Opener, tls: dict[str, str], inherited: dict[str, socket.socket]
) -> None:
    found = open_by({**tls, "redirect_port": "0"})
    assert found.sockets == [inherited["http"], inherited["unix"], inherited["redirect"]]
    assert [each.tls is not None for each in found.all] == [True, False, False]
    assert await where(found, 2) == f"https://a:{port_of(inherited['http'])}/"


async def test_challenges_need_a_port_or_a_socket_of_their_own(
    open_by: Opener,
    tls: dict[str, str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    absent = {"tls_cert": str(tmp_path / "c.pem"), "tls_key": str(tmp_path / "k.pem")}
    webroot = {"acme_webroot": str(tmp_path)}
    for pair in (tls, absent):
        with pytest.raises(ConfigError, match="needs redirect_port, or a socket"):
            open_by({**pair, **webroot})
    with pytest.raises(ConfigError, match="cannot read"):  # nothing would ever make it
        open_by({**absent, "redirect_port": "0"})
    assert open_by({**tls, **webroot, "redirect_port": "0"}).has_certificate()
    request.getfixturevalue("inherited")
    found = open_by({**absent, **webroot})
    assert not found.has_certificate()
    assert await where(found, 2) is None


def test_a_renewed_pair_is_taken_from_the_folder_of_the_service(
    open_by: Opener, tls: dict[str, str], tmp_path: Path
) -> None:
    absent = {"tls_cert": str(tmp_path / "c.pem"), "tls_key": str(tmp_path / "k.pem")}
    for name, path in zip(("c.pem", "k.pem"), tls.values(), strict=True):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_bytes(Path(path).read_bytes())
    environ = {"RUNTIME_DIRECTORY": f"{tmp_path / 'run'}:/run/other"}
    assert open_by(absent, environ=environ).has_certificate()


def test_without_tls_no_name_means_anything(
    open_by: Opener, inherited: dict[str, socket.socket]
) -> None:
    found = open_by({})
    assert found.sockets == list(inherited.values())
    assert all(each.handler is None for each in found.all)


@pytest.mark.parametrize(
    ("setting", "flag"), [("port", "--port"), ("redirect_port", "--redirect-port")]
)
def test_a_port_that_is_taken_is_named(
    open_by: Opener, tls: dict[str, str], setting: str, flag: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(port_of(taken))
        expected = rf"cannot listen on 127\.0\.0\.1:{number}: .* in use: .* another {flag}$"
        with pytest.raises(ConfigError, match=expected):
            open_by({**tls, setting: number})


def test_a_path_that_is_taken_is_named(open_by: Opener, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    with pytest.raises(
        ConfigError, match=r"cannot listen on .*/file: the path exists and is not a socket"
    ):
        open_by({"port": "off", "unix_socket": str(tmp_path / "file")})


def test_a_failed_start_leaves_no_file(open_by: Opener, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{port_of(taken)}"
        with pytest.raises(ConfigError, match=r"in use: .* another --status-listen"):
            open_by({"unix_socket": str(path), "status_listen": address})
    assert not path.exists()


# What a former generation has bound

EVERYTHING = {"redirect_port": "0", "status_listen": "127.0.0.1:0"}


def test_the_sockets_of_a_former_generation_are_used(
    open_by: Opener, tls: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    settings = {**tls, **EVERYTHING, "unix_socket": str(path)}
    first = open_by(settings)
    first.sockets[0].listen()
    open_by.inherited = first.named
    second = open_by(settings)
    assert second.sockets == first.sockets
    assert [each.tls is not None for each in second.all] == [True, False, False, False]
    assert second.all[3].for_operators
    assert sorted(map(str, second.named)) == sorted(map(str, first.named))
    assert second.bound == second.all, "nobody else would start it for their clients"

    # Until it takes over, the file belongs to the first one; then to the second one.
    second.remove_files()
    assert path.exists()
    second.take_over()
    first.leave_to_successor()
    first.remove_files()
    assert path.exists()
    second.remove_files()
    assert not path.exists()


def test_only_addresses_that_the_settings_name_still_are_used(
    open_by: Opener, tls: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    first = open_by({**tls, **EVERYTHING, "unix_socket": str(path)})
    open_by.inherited = first.named
    others = {"host": "0.0.0.0", "unix_socket": str(tmp_path / "other")}
    second = open_by({**tls, **EVERYTHING, **others, "port": "off"})
    assert [sock in first.sockets for sock in second.sockets] == [False, False, True]
    assert [sock.fileno() < 0 for sock in first.sockets] == [True, True, False, False]
    assert path.exists()
    second.take_over()
    assert not path.exists()
    assert first.sockets[2].fileno() < 0
    assert (tmp_path / "other").exists()


def test_a_unix_socket_whose_file_is_gone_is_bound_anew(open_by: Opener, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    settings = {"port": "off", "unix_socket": str(path)}
    first = open_by(settings)
    path.unlink()
    open_by.inherited = first.named
    second = open_by(settings)
    assert second.sockets != first.sockets
    assert path.exists()


def test_a_unix_socket_of_another_server_is_not_taken_for_the_own_one(
    open_by: Opener, tmp_path: Path
) -> None:
    """Another server has replaced the file, so nobody connects to the inherited socket."""
    path = tmp_path / "socket"
    settings = {"port": "off", "unix_socket": str(path)}
    first = open_by(settings)
    path.unlink()
    another = open_by(settings)
    (name, sock), *_ = first.named
    open_by.inherited = [Inherited(name, sock.dup())]
    with pytest.raises(ConfigError, match=r"cannot listen on .*socket: Address already in use"):
        open_by(settings)
    open_by.inherited = first.named
    elsewhere = open_by({"port": "off", "unix_socket": str(tmp_path / "elsewhere")})
    elsewhere.take_over()
    assert path.exists(), "it is not ours to remove"
    another.remove_files()
    assert not path.exists()


# Ending when it is idle


def test_a_server_that_nobody_would_start_again_may_not_end_when_it_is_idle(
    open_by: Opener, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    settings = {"unix_socket": str(path), "idle_exit": "5"}
    found = open_by(settings)
    with pytest.raises(
        ConfigError, match=r"nothing would start the server for clients of http:.*, unix:"
    ):
        check_idle_exit(load_config(settings, {}), found)
    assert not path.exists()
    check_idle_exit(load_config({}, {}), found)


def test_every_socket_has_to_be_handed_over(
    open_by: Opener, inherited: dict[str, socket.socket], tmp_path: Path
) -> None:
    config = load_config({"idle_exit": "5"}, {})
    check_idle_exit(config, open_by({}))
    found = open_by({"unix_socket": str(tmp_path / "ours")})
    with pytest.raises(ConfigError, match=f"clients of unix:{tmp_path}/ours"):
        check_idle_exit(config, found)
