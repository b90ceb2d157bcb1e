"""The network's manners, against servers that have none: what stalls, never ends, lies about its
length, or sends a page instead of data."""

from __future__ import annotations

import http.server
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tsugiki import network
from tsugiki.config.task import FileSpec
from tsugiki.data import sources
from tsugiki.errors import DataError
from tsugiki.network import offline

pytestmark = pytest.mark.precision

PAGE = b"\n<!DOCTYPE html><html><title>502</title></html>"
STALLED = threading.Event()


class Rude(http.server.BaseHTTPRequestHandler):
    """Each path has its own bad manners."""

    asked: list[str]
    logins: list[str | None]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.logins.append(self.headers.get("Authorization"))
        self.send_response(200)
        length = {"/short.json": 50, "/long.json": 5, "/huge.json": 10 << 30}.get(self.path)
        if self.path == "/page.json":
            length = len(PAGE)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        body = PAGE if self.path == "/page.json" else b'{"a": 1}\n'
        try:
            self.wfile.write(body)
            self.wfile.flush()
            if self.path == "/stalls.json":
                STALLED.wait(20)
            if self.path == "/drips.json":
                while not STALLED.wait(0.02):
                    self.wfile.write(b"x")
            if self.path == "/steady.json":
                for _ in range(20):
                    STALLED.wait(0.02)
                    self.wfile.write(b"x" * 10_000)
            if self.path == "/endless.json":
                for _ in itertools.repeat(None):
                    self.wfile.write(b"x" * 65536)
        except OSError:
            return

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in (*network.OFFLINE, network.LIMIT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path / "cache"))
    Rude.asked, Rude.logins = [], []
    STALLED.clear()
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Rude)
    served.daemon_threads = True
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{served.server_port}"
    STALLED.set()
    served.shutdown()
    served.server_close()


def kept(folder: Path) -> list[Path]:
    return [path for path in (folder / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", "the download broke off after 9 bytes. Run again"),
        ("huge", "10.00 GiB or more; at most 2.00 GiB are fetched. TSUGIKI_DOWNLOAD_GIB sets"),
        ("page", "what came is an HTML page (an error, or a login), not data. Nothing was kept"),
    ],
)
def test_what_comes_wrongly_leaves_nothing(
    name: str, message: str, server: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as refused:
        sources.locate(FileSpec(url=f"http://{server}/{name}.json"), tmp_path, None)
    assert message in str(refused.value)
    assert kept(tmp_path) == []


def test_a_server_that_falls_silent_is_given_up(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert network.SILENT_S == 60.0
    monkeypatch.setattr(network, "SILENT_S", 0.3)
    start = time.monotonic()
    with pytest.raises(DataError, match=r"no byte came for 0.3 s, after 9 bytes"):
        sources.locate(FileSpec(url=f"http://{server}/stalls.json"), tmp_path, None)
    assert time.monotonic() - start < 10
    assert kept(tmp_path) == []


def test_a_server_that_drips_is_given_up_and_a_slow_one_waited_for(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 60 s + bytes / 8 KiB: 37 hours for 1 GiB, 3 minutes for 1 MB."""
    assert (network.GRACE_S, network.SLOWEST) == (60.0, 8192)
    monkeypatch.setattr(network, "GRACE_S", 1.0)
    # A tenth of a second a block, whatever else this machine does.
    seconds = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: next(seconds) / 10)
    monkeypatch.setattr(network, "time", clock)
    start = time.monotonic()
    with pytest.raises(DataError) as refused:
        sources.locate(FileSpec(url=f"http://{server}/drips.json"), tmp_path, None)
    assert time.monotonic() - start < 10
    said = str(refused.value)
    assert said.startswith(f"http://{server}/drips.json: too slow: ")
    assert " bytes came in 1 s, and 8,192 a second are asked for" in said
    assert "name that with data_dir" in said
    assert kept(tmp_path) == []
    path = sources.locate(FileSpec(url=f"http://{server}/steady.json"), tmp_path, None)
    assert path.stat().st_size == 200_009


def test_a_body_without_an_end_stops_at_the_limit(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TSUGIKI_DOWNLOAD_GIB", "0.01")
    with pytest.raises(DataError, match=r"at most 0\.01 GiB are fetched"):
        sources.locate(FileSpec(url=f"http://{server}/endless.json"), tmp_path, None)
    assert kept(tmp_path) == []
    monkeypatch.setenv("TSUGIKI_DOWNLOAD_GIB", "much")
    with pytest.raises(DataError, match=r"TSUGIKI_DOWNLOAD_GIB=much: must be a number of GiB"):
        sources.locate(FileSpec(url=f"http://{server}/endless.json"), tmp_path, None)


def test_a_page_in_the_cache_is_named_with_what_to_delete(server: str, tmp_path: Path) -> None:
    """Earlier versions kept what came, whatever it was."""
    for spec in (
        FileSpec(url=f"http://{server}/whole.json"),
        FileSpec(url=f"http://{server}/whole.json", git_blob=sources.git_blob_id(b'{"a": 1}\n')),
    ):
        path = sources.locate(spec, tmp_path, None)
        path.write_bytes(PAGE)
        with pytest.raises(DataError) as refused:
            sources.locate(spec, tmp_path, None)
        assert str(refused.value).startswith(f"{path}: holds an HTML page")
        assert "Delete it and run again" in str(refused.value)
        path.unlink()
        assert sources.locate(spec, tmp_path, None).read_bytes() == b'{"a": 1}\n'


def test_a_login_in_an_address_is_used_and_never_said(server: str, tmp_path: Path) -> None:
    sources.locate(FileSpec(url=f"http://me:s3cret@{server}/whole.json"), tmp_path, None)
    assert Rude.logins == ["Basic bWU6czNjcmV0"]
    with pytest.raises(DataError) as refused:
        sources.locate(FileSpec(url=f"http://me:s3cret@{server}/page.json"), tmp_path, None)
    assert "s3cret" not in str(refused.value)
    with pytest.raises(DataError) as refused:
        sources.locate(FileSpec(url="http://me:s3cret@127.0.0.1:9/x.json"), tmp_path, None)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("name", ["TSUGIKI_OFFLINE", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize(
    ("value", "forbids"),
    [("", 0), ("0", 0), ("false", 0), ("No", 0), ("off", 0), (" 0 ", 0), ("1", 1), ("true", 1)],
)
def test_what_means_online_is_online(
    name: str, value: str, forbids: int, server: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv(name, value)
    spec = FileSpec(url=f"http://{server}/whole.json")
    if forbids:
        assert offline() == name
        with pytest.raises(DataError, match=rf"offline mode is on \({name} is set\)"):
            sources.locate(spec, tmp_path, None)
    else:
        assert offline() is None
        assert sources.locate(spec, tmp_path, None).exists()


def test_the_network_is_forbidden_in_one_place() -> None:
    package = Path(network.__file__).parent
    own = [path.name for path in package.rglob("*.py") if "_OFFLINE" in path.read_text("utf-8")]
    assert own == ["network.py"]
