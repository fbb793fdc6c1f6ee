import os
import stat
import threading

import pytest

from qb_cluster.dispatch import ray_access, ray_token
from qb_cluster.dispatch.ray_access import Access, is_loopback, refuse_open, refuse_versions
from qb_cluster.errors import PoolError


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user who has no token yet."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(ray_token.TOKEN)
    monkeypatch.delenv(ray_token.TOKEN_PATH, raising=False)
    return tmp_path


def mode(file):
    return stat.S_IMODE(file.stat().st_mode)


def test_a_new_token_is_its_owners_alone_and_one_that_is_there_stays(home, caplog):
    ray_access.prepare_own()
    file = home / ".ray" / "auth_token"
    token = file.read_text()
    assert len(token) == 64
    assert mode(file) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["auth_token"]
    ray_access.prepare_own()
    assert file.read_text() == token
    assert caplog.text == ""


def test_an_empty_token_is_replaced(home):
    file = home / "token"
    file.touch()
    ray_token.ensure_token(file)
    assert len(file.read_text()) == 64


def test_drivers_that_start_at_once_have_one_token(home):
    file = home / ".ray" / "auth_token"
    file.parent.mkdir()
    threads = [threading.Thread(target=ray_token.ensure_token, args=[file]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(file.read_text()) == 64


def test_a_token_that_others_could_read_is_kept_from_them_with_a_warning(home, caplog):
    file = home / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("a token")
    file.chmod(0o644)
    ray_access.prepare_own()
    assert mode(file) == 0o600
    assert f"others on this machine could read the Ray token in {file}" in caplog.text
    caplog.clear()
    ray_access.prepare_own()
    assert caplog.text == ""


def test_without_tokens_none_is_made(home, monkeypatch):
    monkeypatch.setenv(ray_access.AUTH_MODE, "disabled")
    ray_access.prepare_own()
    assert list(home.iterdir()) == []


def test_a_token_that_cannot_be_written_is_an_error_that_says_what_to_do(home):
    (home / ".ray").touch()
    with pytest.raises(PoolError, match="name another file in RAY_AUTH_TOKEN_PATH"):
        ray_access.prepare_own()


@pytest.mark.parametrize(("content", "match"), [(None, "cannot be read"), ("\n", "empty file")])
def test_a_variable_that_names_no_token_is_an_error(home, monkeypatch, content, match):
    file = home / "named"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv(ray_token.TOKEN_PATH, str(file))
    with pytest.raises(PoolError, match=f"RAY_AUTH_TOKEN_PATH names .*{match}.*{file}|{match}"):
        ray_token.token_file()


def test_a_token_in_a_variable_has_no_file(monkeypatch):
    assert os.environ[ray_token.TOKEN]
    assert ray_token.token_file() is None


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("192.0.2.7", False),
        ("0.0.0.0", False),
        ("localhost.example", False),
    ],
)
def test_only_what_this_machine_alone_reaches_is_loopback(host, expected):
    assert is_loopback(host) is expected


def test_an_open_cluster_is_fine_where_nobody_else_reaches_it_and_not_with_one_node_elsewhere():
    refuse_open("h:1", Access(asks_for_token=False, hosts=("127.0.0.1", "::1")))
    refuse_open("h:1", Access(asks_for_token=True, hosts=("192.0.2.7",)))
    with pytest.raises(PoolError, match=r"asks for no token.*\(192\.0\.2\.7\).*RAY_AUTH_MODE"):
        refuse_open("h:1", Access(asks_for_token=False, hosts=("127.0.0.1", "192.0.2.7")))


def test_a_head_of_other_versions_is_refused_and_both_are_named():
    access = Access(asks_for_token=True, hosts=(), ray="2.9.0", python="3.9.1")
    match = r"at 'h:1' runs Ray 2\.9\.0 with Python 3\.9\.1, and this driver Ray \S+ with Python 3"
    with pytest.raises(PoolError, match=match):
        refuse_versions("h:1", access)
