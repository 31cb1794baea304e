"""Variables that Kubernetes and Docker make for services, which may be named as we are."""

import dataclasses

import pytest

from xetserve.config.load import load_all, load_config
from xetserve.config.schema import ORIGIN_SECTIONS, SECTIONS
from xetserve.config.service_links import find_service_links
from xetserve.errors import ConfigError


def links_of(service: str, port: int = 8080, kind: str = "tcp") -> dict[str, str]:
    """Return what a pod gets for a service with one named port."""
    name, url = service.upper().replace("-", "_"), f"{kind}://10.96.0.11:{port}"
    start = f"{name}_PORT_{port}_{kind.upper()}"
    return {
        f"{name}_SERVICE_HOST": "10.96.0.11",
        f"{name}_SERVICE_PORT": str(port),
        f"{name}_SERVICE_PORT_HTTP_API": str(port),
        f"{name}_PORT": url,
        start: url,
        f"{start}_PROTO": kind,
        f"{start}_PORT": str(port),
        f"{start}_ADDR": "10.96.0.11",
    }


@pytest.mark.parametrize(
    "service",
    ["xetserve", "xetserve-one", "xetserve-redirect", "xetserve-service", "xetserve-port"],
)
@pytest.mark.parametrize("kind", ["tcp", "udp", "sctp"])
def test_links_of_a_service_are_ignored(service: str, kind: str) -> None:
    links = links_of(service, kind=kind)
    assert find_service_links({**links, "PATH": "/bin"}) == set(links)
    assert load_all({}, links).errors == []
    assert load_config({}, {**links, "PORT": "81"}).server.port == 81


@pytest.mark.parametrize("service", ["xetserve", "xetserve-cache"])
def test_links_between_containers_of_docker_are_ignored(service: str) -> None:
    links = {name: value for name, value in links_of(service).items() if "_SERVICE_" not in name}
    name = service.upper().replace("-", "_")
    links |= {f"{name}_NAME": f"/client/{service}", f"{name}_ENV_XETSERVE_CORS": "off"}
    assert find_service_links(links) == set(links)
    assert load_all({}, links).errors == []


def test_a_pod_may_set_our_port_beside_the_links() -> None:
    links = links_of("xetserve")
    assert load_config({}, {**links, "XETSERVE_PORT": "9000"}).server.port == 9000
    assert load_config({}, {**links, "XETSERVE_HOST": "::"}).server.host == "::"


def test_links_of_several_services_and_ports() -> None:
    environ = {**links_of("xetserve"), **links_of("xetserve", 9090), **links_of("xetserve-b")}
    assert find_service_links(environ) == set(environ)


@pytest.mark.parametrize(
    "environ",
    [
        pytest.param({"XETSERVE_PORT": "http://10.0.0.1:80"}, id="a URL of another kind"),
        pytest.param({"XETSERVE_SERVICE_PORT": "8080"}, id="a port without its host"),
        pytest.param({"XETSERVE_NAME": "x"}, id="a name without a link"),
        pytest.param({**links_of("xetserve"), "XETSERVE_PROT": "1"}, id="a slip beside links"),
        pytest.param({**links_of("xetserve"), "XETSERVE_PORT": "http"}, id="a bad port"),
        pytest.param({**links_of("xetserve"), "XETSERVE_ONE": "a:1"}, id="no variable of a link"),
    ],
)
def test_other_variables_still_stop_the_start(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        load_config({}, environ)


def test_no_setting_is_taken_for_a_link() -> None:
    settings = [
        setting
        for section in (*SECTIONS.values(), *ORIGIN_SECTIONS.values())
        for setting in dataclasses.fields(section)
    ]
    ours = {name: "1" for setting in settings for name in setting.metadata["variables"]}
    links = links_of("xetserve")
    assert find_service_links({**links, **ours}) == set(links) - {"XETSERVE_PORT"}
