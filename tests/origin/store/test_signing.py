from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from tests.origin.conftest import Clock
from xetserve.origin.store.blobs import TemporaryFiles
from xetserve.origin.store.signing import Grant, Signer, format_ranges, load_secret, split_ranges
from xetserve.xet.hashes import parse_hash
from xetserve.xet.reconstruction import ByteRange

NAME = "ab" * 32
RANGES = [ByteRange(0, 10), ByteRange(20, 21)]


@pytest.fixture
def signer(clock: Clock) -> Signer:
    return Signer(b"secret", clock)


def make_grant(clock: Clock, seconds: int = 10) -> Grant:
    return Grant("model", "me/größe", "read", int(clock.now) + seconds)


def query_of(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))


def test_a_token_says_what_was_granted_until_it_expires(signer: Signer, clock: Clock) -> None:
    grant = make_grant(clock)
    token = signer.make_token(grant)
    assert token.isascii()
    assert signer.parse_token(token) == grant
    clock.now += 9.9
    assert signer.parse_token(token) == grant
    clock.now += 0.1
    assert signer.parse_token(token) is None


def test_a_changed_or_foreign_token_is_none(signer: Signer, clock: Clock) -> None:
    token = signer.make_token(make_grant(clock))
    for at in range(len(token)):
        changed = "A" if token[at] != "A" else "B"
        assert signer.parse_token(token[:at] + changed + token[at + 1 :]) is None
        assert signer.parse_token(token[:at]) is None
    assert Signer(b"other", clock).parse_token(token) is None
    for text in ("", "xet_", "xet_.", "hf_user", "xet_é.ü"):
        assert signer.parse_token(text) is None


def test_a_data_url_holds_as_it_was_signed_until_it_expires(signer: Signer, clock: Clock) -> None:
    url = signer.make_data_url("http://x", parse_hash(NAME), RANGES, signer.get_expiry(10))
    assert url.startswith(f"http://x/data/{NAME}?X-Xet-Signed-Range=bytes%3D0-9%2C20-20&Expires=")
    query = query_of(url)
    assert signer.check_data_url(NAME, query) is None
    assert signer.check_data_url("cd" * 32, query) == "the URL's signature is wrong"
    for name in query:
        for changed in (
            query | {name: query[name] + "0"},
            {k: query[k] for k in query if k != name},
        ):
            assert signer.check_data_url(NAME, changed) == "the URL's signature is wrong"
    clock.now += 10
    assert signer.check_data_url(NAME, query) == "the URL has expired"


def test_another_url_holds_as_it_was_signed_until_it_expires(signer: Signer, clock: Clock) -> None:
    fields = {"name": "a b&c=größe"}
    url = signer.make_url("http://x", "/lfs/a%2Fb", fields, signer.get_expiry(10))
    query = query_of(url)
    assert query["name"] == fields["name"]
    assert signer.check_url("/lfs/a%2Fb", query) is None
    assert signer.check_url("/lfs/a/b", query) == "the URL's signature is wrong"
    assert signer.check_url("/lfs/a%2Fb", {}) == "the URL's signature is wrong"
    assert signer.check_url("/lfs/a%2Fb", query | {"more": "1"}) == "the URL's signature is wrong"
    clock.now += 10
    assert signer.check_url("/lfs/a%2Fb", query) == "the URL has expired"


def test_the_secret_stays_in_its_folder_and_is_the_owners_alone(tmp_path: Path) -> None:
    temporary = TemporaryFiles(tmp_path / "tmp")
    secret = load_secret(tmp_path, temporary)
    assert load_secret(tmp_path, temporary) == secret
    assert len(secret) == 32
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("count", [0, 1, 499, 500, 501, 3000])
@pytest.mark.parametrize("step", [2, 100_000])
def test_ranges_are_split_so_that_each_part_fits_into_a_url(count: int, step: int) -> None:
    ranges = [ByteRange(n * step, n * step + 1) for n in range(count)]
    parts = split_ranges(ranges)
    assert [byte_range for part in parts for byte_range in part] == ranges
    assert all(0 < len(part) <= 500 and len(format_ranges(part)) < 6100 for part in parts)
