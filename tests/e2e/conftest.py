"""An origin that the official client has filled, and a server in front of it."""

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.conftest import (
    Launcher,
    OriginControl,
    Process,
    clean_environment,
    need_program,
    sha256_of,
)
from tests.e2e import client_site as site_module
from tests.e2e import hub
from tests.e2e.balancers import Balancers
from tests.e2e.client_site import ClientSite
from tests.e2e.dataset import make_dataset
from tests.e2e.hub import start_origin, upload, write_files
from tests.peers import Certificates, make_certificates
from tests.waiting import wait_until

TOKEN = hub.TOKEN
REPO = "tester/everything"
NUM_WORKERS = 3
# "cache", "workers" or both with a comma: how the shared servers run.
VARIANT = os.environ.get("XETSERVE_TEST_VARIANT", "").split(",")
OLD_CLIENT = ("huggingface_hub==0.36.2", "hf-xet==1.2.0")
DATA_CLIENT = ("datasets==5.2.0", "huggingface_hub==2.4.0")
NODE_CLIENT = "@huggingface/hub@2.17.5"
KERNELS_CLIENT = "kernels==0.17.2"
POLARS = ("polars==2.1.0", "polars-runtime-32==2.1.0")


@dataclass
class Uploaded:
    """What the official client uploaded: the folder, and path -> sha256."""

    folder: Path
    digests: dict[str, str]
    origin_folder: Path


@dataclass
class Site:
    """A server of ours in front of an origin with the uploaded repository."""

    origin: Process
    server: Process
    control: OriginControl
    uploaded: Uploaded
    cache: Path | None = None

    def empty_cache(self) -> None:
        """Have nothing stored: every test begins cold."""
        if self.cache is not None:
            temporary = self.cache / "tmp"
            wait_until(lambda: not any(temporary.iterdir()))  # what is being written comes first
            for folder in (
                *self.cache.glob("??"),
                *map(self.cache.joinpath, ("ledgers", "plain", "large")),
            ):
                shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def old_client(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment with the old client."""
    folder = tmp_path_factory.mktemp("old-client")
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, *OLD_CLIENT], check=True, timeout=110, capture_output=True)
    return python


@pytest.fixture(scope="session")
def data_client(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment with datasets, pandas and pyarrow, and without hf-xet."""
    folder = tmp_path_factory.mktemp("data-client")
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    for command in (["install", *DATA_CLIENT], ["uninstall", "--yes", "hf-xet"]):
        subprocess.run([*pip, *command], check=True, timeout=250, capture_output=True)
    return python


@pytest.fixture(scope="session")
def kernels_client(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder for PYTHONPATH with the client for kernels; it finds the rest beside the tests."""
    return install_alone(tmp_path_factory.mktemp("kernels-client"), KERNELS_CLIENT)


@pytest.fixture(scope="session")
def polars_client(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder for PYTHONPATH with polars."""
    return install_alone(tmp_path_factory.mktemp("polars-client"), *POLARS)


def install_alone(folder: Path, *packages: str) -> str:
    """Install packages without their dependencies into a folder, and return it."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    install = [*pip, "install", "--no-deps", "--target", str(folder), *packages]
    subprocess.run(install, check=True, timeout=110, capture_output=True)
    return str(folder)


@pytest.fixture(scope="session")
def node_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which Node finds the JavaScript client."""
    folder = tmp_path_factory.mktemp("node-client")
    (folder / "package.json").write_text('{"private": true}')
    npm = [need_program("npm"), "install", "--silent", "--no-audit", "--no-fund", NODE_CLIENT]
    subprocess.run(npm, cwd=folder, check=True, timeout=250, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def uploaded(tmp_path_factory: pytest.TempPathFactory) -> Uploaded:
    """A repository as the official client of today uploads it."""
    base = tmp_path_factory.mktemp("uploaded")
    names = make_dataset(base / "files")
    launched = Launcher(base)
    try:
        origin = start_origin(launched, base / "origin")
        upload(sys.executable, origin.url, base / "home", "model", REPO, base / "files")
    finally:
        launched.stop_all()
    digests = {name: sha256_of(base / "files" / name) for name in names}
    return Uploaded(base / "files", digests, base / "origin")


@pytest.fixture(scope="session")
def _running_site(uploaded: Uploaded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    launched = Launcher(folder)
    cache = folder / "cache" if "cache" in VARIANT else None
    try:
        # Started anew: what was uploaded has to be on disk.
        origin = start_origin(launched, uploaded.origin_folder)
        server = launched.start(*serve_arguments(origin.url, *_variant_flags(cache)))
        yield Site(origin, server, OriginControl(origin.url), uploaded, cache)
    finally:
        launched.stop_all()


def _variant_flags(cache: Path | None) -> list[str]:
    flags = ["--workers", str(NUM_WORKERS)] if "workers" in VARIANT else []
    if cache is not None:
        flags += ["--cache-dir", str(cache), "--cache-min-free", "0"]
    return flags


@pytest.fixture
def site(_running_site: Site) -> Iterator[Site]:
    """The site, with no faults set and an empty record of requests."""
    _running_site.control.set_faults()
    _running_site.control.reset_requests()
    _running_site.empty_cache()
    yield _running_site
    _running_site.control.set_faults()
    assert _running_site.server.popen.poll() is None, "the server has died"
    assert "Traceback" not in _running_site.server.log


@pytest.fixture(scope="module")
def server_with_workers(
    _running_site: Site, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    """A server with several workers in front of the site's origin."""
    launched = Launcher(tmp_path_factory.mktemp("workers"))
    flags = ("--workers", str(NUM_WORKERS))
    yield launched.start(*serve_arguments(_running_site.origin.url, *flags))
    launched.stop_all()


@pytest.fixture(scope="session")
def _impatient_server(
    _running_site: Site, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    launched = Launcher(tmp_path_factory.mktemp("impatient"))
    flags = (
        "--upstream-timeout",
        "1",
        "--outage-patience",
        "0",
        *_variant_flags(_running_site.cache),
    )
    yield launched.start(*serve_arguments(_running_site.origin.url, *flags))
    launched.stop_all()


@pytest.fixture
def impatient_site(site: Site, _impatient_server: Process) -> Iterator[Site]:
    """The site with a server that gives up soon: for trouble that does not pass."""
    yield replace(site, server=_impatient_server)
    assert "Traceback" not in _impatient_server.log


def serve_arguments(hub_url: str, *extra: str) -> list[str]:
    """The command line of a server for tests; it believes nothing for longer than it takes to say
    it.
    """
    return [
        "serve",
        *("--host", "127.0.0.1", "--port", "0", "--hub-url", hub_url),
        *("--log-level", "debug", "--hash-repo", REPO, "--metadata-ttl", "0"),
        *extra,
    ]


@pytest.fixture(scope="session")
def _patient_server(
    _running_site: Site, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    launched = Launcher(tmp_path_factory.mktemp("patient"))
    flags = ("--upstream-timeout", "40", *_variant_flags(_running_site.cache))
    yield launched.start(*serve_arguments(_running_site.origin.url, *flags))
    launched.stop_all()


@pytest.fixture
def patient_site(site: Site, _patient_server: Process) -> Iterator[Site]:
    """The site with a server whose limits a busy machine does not reach."""
    yield replace(site, server=_patient_server)
    assert "Traceback" not in _patient_server.log


def tls_flags(certificates: Certificates) -> tuple[str, ...]:
    """Return the flags of a server that has these certificates."""
    return ("--tls-cert", str(certificates.chain), "--tls-key", str(certificates.key))


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority, and the certificate and key of a server."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def balancers(tmp_path: Path) -> Iterator[Balancers]:
    """Load balancers, none running yet; those that a test starts are stopped in the end."""
    folder = tmp_path / "balancers"
    folder.mkdir()
    balancers = Balancers(folder)
    yield balancers
    balancers.stop()


def environment_without_home() -> dict[str, str]:
    """What clients such as wget need, and no configuration of the user's."""
    return {**clean_environment(), "HOME": os.devnull}


@pytest.fixture(scope="session")
def _running_client_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClientSite]:
    base = tmp_path_factory.mktemp("clients")
    files = site_module.make_files()
    write_files(base / "files", files)
    launched = Launcher(base)
    try:
        many = {f"d{n % 7}/{n:05}.txt": b"" for n in range(site_module.NUM_MANY)}
        write_files(base / "many", many)
        build = {"build/model-Q8_0.gguf": files[site_module.SMALL]}
        write_files(base / "kernel", build)
        imports = [f"{site_module.MANY}={base / 'many'}"]
        imports.append(f"kernels/{site_module.KERNEL}={base / 'kernel'}")
        imports.append(f"buckets/{site_module.BUCKET}={base / 'kernel'}")
        flags = [part for each in imports for part in ("--import", each)]
        origin = start_origin(launched, base / "origin", *flags)
        for repo, flags in ((site_module.MODEL, []), (site_module.SECRET, ["--private"])):
            upload(sys.executable, origin.url, base / "home", "model", repo, base / "files", *flags)
        write_files(base / "newer", site_module.make_newer_files())
        upload(
            sys.executable,
            origin.url,
            base / "home",
            "model",
            site_module.PAST,
            base / "files" / "quants",
        )
        upload(sys.executable, origin.url, base / "home", "model", site_module.PAST, base / "newer")
        server = launched.start(*serve_arguments(origin.url))
        yield ClientSite(origin, server, OriginControl(origin.url), files, base)
    finally:
        launched.stop_all()


@pytest.fixture
def client_site(_running_client_site: ClientSite) -> Iterator[ClientSite]:
    """The site for clients, see tests.e2e.client_site."""
    with site_module.checking(_running_client_site) as found:
        yield found
