"""Downloads, from a server of this test: verified, and nothing left behind that is not the file."""

from __future__ import annotations

import errno
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pooch
import pytest

from dpap.data.sources import Download
from dpap.data.web import download, megabytes
from dpap.errors import DPAPError

BODY = bytes(range(256)) * 4000  # about 1 MB: several pieces
CHECKSUM = f"md5:{hashlib.md5(BODY).hexdigest()}"


class Server(ThreadingHTTPServer):
    """What a path answers is up to its function."""

    daemon_threads = True
    answers: dict[str, Callable[[BaseHTTPRequestHandler], None]]

    def item(self, path: str = "file", **changes: object) -> Download:
        item = Download("data.gz", f"http://127.0.0.1:{self.server_port}/{path}", len(BODY), CHECKSUM, ())
        return replace(item, **changes)  # type: ignore[arg-type]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.answers[self.path[1:]](self)

    def log_message(self, *_: object) -> None:
        pass


def send(handler: BaseHTTPRequestHandler, body: bytes, *, status: int = 200, length: int | None = None) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)
    handler.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(pooch.core.time, "sleep", lambda _: None)  # between two tries
    monkeypatch.setenv("no_proxy", "*")
    with Server(("127.0.0.1", 0), Handler) as server:
        server.answers = {"file": lambda handler: send(handler, BODY)}
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_comes_whole_and_progress_is_told(server: Server, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    path = download(server.item(), tmp_path / "new" / "folder", lambda *values: told.append(values))
    assert path == tmp_path / "new" / "folder" / "data.gz"
    assert path.read_bytes() == BODY
    assert names(path.parent) == ["data.gz"]
    assert told[-1] == ("data.gz", len(BODY), len(BODY))
    assert len(told) > 2


def test_a_connection_that_breaks_is_tried_again_until_it_is_given_up(server: Server, tmp_path: Path) -> None:
    def cut(handler: BaseHTTPRequestHandler) -> None:
        send(handler, BODY[:1000], length=len(BODY))

    answers = iter([cut, server.answers["file"], cut, cut])
    server.answers["cut"] = lambda handler: next(answers)(handler)
    assert download(server.item("cut"), tmp_path / "one").read_bytes() == BODY
    with pytest.raises(DPAPError, match="no connection") as caught:
        download(server.item("cut"), tmp_path / "two", tries=2)
    assert "run the same again" in caught.value.fix
    assert names(tmp_path / "two") == []


@pytest.mark.parametrize("body", [b"x" * len(BODY), b"<html>log in</html>"])
def test_another_file_is_refused(server: Server, tmp_path: Path, body: bytes) -> None:
    server.answers["wrong"] = lambda handler: send(handler, body)
    with pytest.raises(DPAPError, match="another file") as caught:
        download(server.item("wrong"), tmp_path, tries=1)
    assert CHECKSUM.partition(":")[2] in caught.value.what
    assert hashlib.md5(body).hexdigest() in caught.value.what
    assert names(tmp_path) == []


def test_an_address_that_has_nothing(server: Server, tmp_path: Path) -> None:
    server.answers["gone"] = lambda handler: send(handler, b"", status=404)
    with pytest.raises(DPAPError, match="the server answers 404") as caught:
        download(server.item("gone"), tmp_path, tries=1)
    assert caught.value.where == server.item("gone").url
    assert str(tmp_path) in caught.value.fix
    assert CHECKSUM in caught.value.fix
    assert names(tmp_path) == []


def test_offline(server: Server, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/data.gz"
    with pytest.raises(DPAPError, match="no connection") as caught:
        download(server.item(url=url), tmp_path / "new", tries=1)
    assert caught.value.where == url
    assert f"get {url} (1.02 MB) and put it into {tmp_path / 'new'} as data.gz" in caught.value.fix


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DPAPError, match="cannot be written") as caught:
        download(server.item(), tmp_path / "file")
    assert caught.value.where == str(tmp_path / "file")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", full)
    with pytest.raises(DPAPError, match="data.gz cannot be written: the disk is full"):
        download(server.item(), tmp_path)


def test_sizes_as_people_say_them() -> None:
    assert [megabytes(size) for size in (170_052_171, 9_912_422, 28_881, 4_542)] == [
        "170 MB",
        "9.91 MB",
        "0.03 MB",
        "0.005 MB",
    ]
