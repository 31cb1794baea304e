"""The settings of `xetserve origin`: a schema of its own, read like the server's."""

import argparse
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

import xetserve
from xetserve.commands.config import read_env_file
from xetserve.config.load import Loaded, add_flags, load_all, load_config, read_tokens
from xetserve.config.parsers import split_tokens
from xetserve.config.schema import (
    ORIGIN_SECTIONS,
    SECTIONS,
    Config,
    OriginConfig,
    OriginServerConfig,
)
from xetserve.config.template import make_env_template, make_markdown, make_toml_template
from xetserve.errors import ConfigError

CHAPTER = Path(xetserve.__file__).parent / "docs" / "origin.md"
DEFAULTS = Config(server=OriginServerConfig())


def load(file: Path | None = None, environ: Mapping[str, str] | None = None) -> Loaded:
    return load_all({}, environ or {}, str(file) if file else None, ORIGIN_SECTIONS)


def uncomment(template: str) -> str:
    return re.sub(r"(?m)^#(?=\w)", "", template)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "origin.toml"
    path.write_text(text)
    return path


def test_the_defaults() -> None:
    loaded = load()
    assert (loaded.config, loaded.errors) == (DEFAULTS, [])


def test_the_templates_have_every_setting_with_its_default(tmp_path: Path) -> None:
    path = write(tmp_path, uncomment(make_toml_template(ORIGIN_SECTIONS)))
    loaded = load(path)
    assert (loaded.config, loaded.errors) == (DEFAULTS, [])
    assert loaded.origins == {
        setting.name: f"{path}: {section}.{setting.name}"
        for section, fields in ORIGIN_SECTIONS.items()
        for setting in dataclasses.fields(fields)
    }
    path.write_text(uncomment(make_env_template(ORIGIN_SECTIONS)))
    loaded = load(environ=read_env_file(path))
    assert (loaded.config, loaded.errors) == (DEFAULTS, [])


def test_a_file_sets_what_an_origin_needs(tmp_path: Path) -> None:
    text = """
        [origin]
        dir = "/srv/origin"
        data_url = "http://data.example/"
        imports = '''
        me/model=/srv/my models/one

        datasets/me/data=/srv/data
        '''
        [server]
        port = 9090
    """
    loaded = load(write(tmp_path, text))
    assert loaded.errors == []
    assert loaded.config.server.port == 9090
    assert loaded.config.origin == OriginConfig(
        dir="/srv/origin",
        data_url="http://data.example",
        imports="me/model=/srv/my models/one\ndatasets/me/data=/srv/data",
    )


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[hub]\nhub_url = 'http://hub'", "unknown section or key 'hub'"),
        ("[orgin]", "unknown section or key 'orgin'; did you mean 'origin'?"),
        ("[origin]\nfolder = 'x'", "unknown key 'folder' in [origin]"),
        ("[server]\nbridge_url = 'x'", "unknown key 'bridge_url' in [server]; it belongs in "),
        ("[origin]\ndata_url = 'x'", "origin.data_url must be an http or https URL"),
        ("[origin]\nimports = 'me/model'", "origin.imports must be OWNER/NAME=FOLDER"),
        ("[origin]\nimports = ['a=b']", "origin.imports must be a single value"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, error: str) -> None:
    (found,) = load(write(tmp_path, text)).errors
    assert error in found


def test_server_and_origin_may_have_one_environment() -> None:
    environ = {"XETSERVE_HUB_URL": "http://hub", "XETSERVE_ORIGIN_DIR": "/srv/origin"}
    assert load_config({}, environ).hub.hub_url == "http://hub"
    assert load_config({}, environ, None, ORIGIN_SECTIONS).origin.dir == "/srv/origin"
    with pytest.raises(ConfigError, match="did you mean 'XETSERVE_ORIGIN_DIR'"):
        load_config({}, {"XETSERVE_ORIGIN_DIRS": "/srv/origin"})


def test_a_server_has_no_section_of_an_origin(tmp_path: Path) -> None:
    path = write(tmp_path, "[origin]\n")
    with pytest.raises(ConfigError, match="unknown section or key 'origin'"):
        load_config({}, {}, str(path))


def test_names_are_used_once() -> None:
    names = [
        setting.name
        for section in (*SECTIONS.values(), OriginConfig)
        for setting in dataclasses.fields(section)
    ]
    assert len(set(names)) == len(names)


def test_flags() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, ("origin",), schema=ORIGIN_SECTIONS)
    given = vars(parser.parse_args(["--bridge-url", "http://bridge.example"]))
    config = load_config(given, {}, None, ORIGIN_SECTIONS)
    assert config.origin.bridge_url == "http://bridge.example"


def test_the_chapter_has_the_table() -> None:
    """To write it again, see .github/CONTRIBUTING.md."""
    _, _, rest = CHAPTER.read_text(encoding="utf-8").partition("<!-- settings: generated -->\n")
    table, _, _ = rest.partition("<!-- end -->")
    assert table
    assert make_markdown(ORIGIN_SECTIONS).startswith(table)


# Tokens

TOKENS = "# who may what\nhf_abc==ann, hf_def=bob\n\n  hf_ghi=ann\n"


def load_tokens(tmp_path: Path, text: str, *more: str, **environ: str) -> dict[str, str]:
    (tmp_path / "tokens").write_text(text)
    environ = {"XETSERVE_ORIGIN_TOKENS_FILE": str(tmp_path / "tokens"), **environ}
    config = load_config({}, environ, None, ORIGIN_SECTIONS)
    return split_tokens(read_tokens(config, more).origin.tokens)


def test_tokens_of_all_sources(tmp_path: Path) -> None:
    found = load_tokens(tmp_path, TOKENS, "flag=dan", XETSERVE_ORIGIN_TOKENS="hf_env=cy hf_def=bob")
    assert found == {
        "hf_env": "cy",
        "hf_def": "bob",
        "hf_abc=": "ann",
        "hf_ghi": "ann",
        "flag": "dan",
    }


def test_tokens_may_be_a_credential(tmp_path: Path) -> None:
    (tmp_path / "xetserve.tokens").write_text(TOKENS)
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    config = load_config({}, environ, None, ORIGIN_SECTIONS)
    assert set(split_tokens(config.origin.tokens)) == {"hf_abc=", "hf_def", "hf_ghi"}
    assert "hf_def" not in repr(config)
    assert load_config({}, environ) == Config()  # a server beside the origin


@pytest.mark.parametrize(
    ("text", "more", "error"),
    [
        ("hf_s3cret\n", (), "tokens must be TOKEN=USER in line 1"),
        ("a=b\n#c\nhf_s3cret=no name", (), "tokens must be TOKEN=USER in line 3"),
        ("hf_s3cret=a/b", (), "tokens must be TOKEN=USER in line 1"),
        ("hf_s3cret=a hf_s3cret=b", (), "tokens must not give one token to two users"),
        ("hf_s3cret=a", ("hf_s3cret=b",), "must not give one token to two users"),
        ("a=b", ("hf_s3cret",), "--token must be TOKEN=USER"),
        ("# none\n", (), "tokens is empty"),  # this must not open the origin to everybody
    ],
)
def test_a_bad_token_is_named_by_its_place(
    tmp_path: Path, text: str, more: tuple[str, ...], error: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_tokens(tmp_path, text, *more)
    assert error in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_tokens_file_that_is_not_there(tmp_path: Path) -> None:
    config = load_config({"tokens_file": "/nowhere"}, {}, None, ORIGIN_SECTIONS)
    with pytest.raises(ConfigError, match="cannot read /nowhere: No such file or directory"):
        read_tokens(config)
