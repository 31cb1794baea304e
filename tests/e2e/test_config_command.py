"""`xetserve config` as a process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import clean_environment
from tests.peers import make_certificates
from xetserve.config.template import make_markdown

SECRET = "a secret of very many different letters"


def run_config(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "xetserve", "config", *arguments],
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stdout + done.stderr
    return done


@pytest.mark.parametrize(("flags", "option"), [((), "--config"), (("--env",), "--env-file")])
def test_a_template_is_good(tmp_path: Path, flags: tuple[str, ...], option: str) -> None:
    path = tmp_path / "template"
    path.write_text(run_config("template", *flags).stdout)
    done = run_config("check", option, str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "good; 0 settings differ from the default" in done.stdout


def test_the_file_of_an_origin_is_one_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "origin.toml"
    path.write_text(run_config("template", "--origin").stdout + '\n[hub]\nhub_url = "http://hub"\n')
    done = run_config("check", "--origin", "--config", str(path))
    assert done.stderr == f"xetserve: {path}: unknown section or key 'hub'\n"
    path.write_text("[origin]\ndir = '/srv/origin'\n")
    done = run_config("check", "--origin", "--config", str(path))
    assert done.stdout == f"{path}: good; 1 setting differs from the default\n"
    assert 'dir = "/srv/origin"' in run_config("show", "--origin", "--config", str(path)).stdout


def test_the_tables_of_the_documentation() -> None:
    assert run_config("template", "--markdown").stdout == make_markdown()


def test_a_check_tries_the_certificate(tmp_path: Path) -> None:
    pairs = []
    for name in "ab":
        folder = tmp_path / name
        folder.mkdir()
        pairs.append(make_certificates(folder))
    done = run_config("check", "--tls-cert", str(pairs[0].chain), "--tls-key", str(pairs[1].key))
    assert done.returncode == 1
    assert "key values mismatch" in done.stderr
    done = run_config("check", "--tls-cert", str(pairs[0].chain), "--tls-key", str(pairs[0].key))
    assert done.returncode == 0


def test_a_key_pair_may_be_a_credential(tmp_path: Path) -> None:
    """As before an upgrade: the environment is a file, the credentials are in a store."""
    certificates = make_certificates(tmp_path)
    for name, source in (("tls_cert", certificates.chain), ("tls_key", certificates.key)):
        (tmp_path / f"xetserve.{name}").write_bytes(source.read_bytes())
    file = tmp_path / "xetserve.toml"
    file.write_text("[tls]\nredirect_port = 80\n")
    environment = tmp_path / "xetserve.env"
    environment.write_text("XETSERVE_WORKERS=1\n")
    arguments = ("check", "--config", str(file), "--env-file", str(environment))
    assert "redirect_port needs TLS" in run_config(*arguments).stderr
    folders = f"{tmp_path}/absent:{tmp_path}"
    done = run_config(*arguments, CREDENTIALS_DIRECTORY=folders)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_check_names_all_that_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "xetserve.toml"
    path.write_text("[server]\nprot = 80\n[hub]\nnative_secret = 'short'\n")
    done = run_config("check", "--config", str(path), "--port", "x")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 3
    assert "did you mean 'port'?" in done.stderr
    found = json.loads(run_config("check", "--config", str(path), "--port", "x", "--json").stdout)
    assert found["config"] == str(path)
    assert [f"xetserve: {error}" for error in found["errors"]] == done.stderr.splitlines()


def test_a_secret_that_can_be_guessed_is_named_wherever_it_is(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a" * 40)
    path = tmp_path / "xetserve.toml"
    path.write_text(f"[hub]\nnative_secret = '{'ab' * 20}'\n")
    done = run_config("check", "--config", str(path))
    assert "hub.native_secret can be guessed: create one with `openssl rand" in done.stderr
    done = run_config("check", "--operator-token-file", str(token))
    assert done.returncode == 1
    assert f"{token} can be guessed: create one with `openssl rand" in done.stderr
    assert "aaaa" not in done.stderr


def test_settings_that_do_not_go_together(tmp_path: Path) -> None:
    path = tmp_path / "xetserve.toml"
    path.write_text("[tls]\ntls_key = 'x.pem'\nacme_webroot = '/srv'\n")
    done = run_config("check", XETSERVE_CONFIG=str(path))
    assert done.returncode == 1
    assert "must be set together" in done.stderr
    assert "acme_webroot needs" in done.stderr


def test_what_counts_is_shown_with_where_it_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "xetserve.toml"
    path.write_text(f"[server]\nport = 80\n[hub]\nnative_secret = '{SECRET}'\n")
    shown = run_config("show", "--config", str(path), "--host", "::1", XETSERVE_WORKERS="3")
    lines = {line.partition(" =")[0]: line for line in shown.stdout.splitlines()}
    assert shown.returncode == 0
    assert lines["port"].split() == ["port", "=", "80", "#", f"{path}:", "server.port"]
    assert lines["host"].endswith("# --host")
    assert lines["workers"].endswith("# XETSERVE_WORKERS")
    assert lines["drain_delay"].endswith("# default")
    assert '"***"' in lines["native_secret"]
    found = json.loads(run_config("show", "--config", str(path), "--json").stdout)
    assert found["server"]["port"] == {"value": 80, "from": f"{path}: server.port"}
    assert found["hub"]["native_secret"]["value"] == "***"


def test_an_environment_file_that_is_not_there(tmp_path: Path) -> None:
    done = run_config("check", "--env-file", str(tmp_path / "absent"))
    assert done.returncode == 2
    assert "cannot read" in done.stderr
