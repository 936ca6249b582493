"""Downloads, from a server of this test: resumed, verified, and nothing left behind that is not the file."""

from __future__ import annotations

import errno
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dpap.data import web
from dpap.data.sources import Download
from dpap.data.web import download, megabytes
from dpap.errors import DPAPError

BODY = bytes(range(256)) * 4000  # about 1 MB: several pieces
HALF = len(BODY) // 2
CHECKSUM = f"md5:{hashlib.md5(BODY).hexdigest()}"


class Server(ThreadingHTTPServer):
    """What a path answers is up to its function; the Range of every request is kept."""

    daemon_threads = True
    answers: dict[str, Callable[[BaseHTTPRequestHandler], None]]
    ranges: list[str | None]

    def item(self, path: str = "file", **changes: object) -> Download:
        item = Download("data.gz", f"http://127.0.0.1:{self.server_port}/{path}", len(BODY), CHECKSUM, ())
        return replace(item, **changes)  # type: ignore[arg-type]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers["Range"])
        self.server.answers[self.path[1:]](self)

    def log_message(self, *_: object) -> None:
        pass


def send(handler: BaseHTTPRequestHandler, body: bytes, *, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def send_file(handler: BaseHTTPRequestHandler, body: bytes = BODY) -> None:
    """As servers do: the part that was asked for."""
    asked = handler.headers["Range"]
    if asked is None:
        send(handler, body)
    elif (start := int(asked.removeprefix("bytes=").removesuffix("-"))) >= len(body):
        send(handler, b"", status=416)
    else:
        span = f"bytes {start}-{len(body) - 1}/{len(body)}"
        send(handler, body[start:], status=206, Content_Range=span)


def cut(handler: BaseHTTPRequestHandler, length: int = HALF) -> None:
    """Half of the file, and the connection ends."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(BODY)))
    handler.end_headers()
    handler.wfile.write(BODY[:length])
    handler.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(web, "PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "*")
    with Server(("127.0.0.1", 0), Handler) as server:
        server.answers, server.ranges = {"file": send_file}, []
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
    assert [here for _, here, _ in told] == sorted({here for _, here, _ in told})


def test_what_is_here_is_not_received_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.gz.part").write_bytes(BODY[:HALF])
    told: list[int] = []
    assert download(server.item(), tmp_path, lambda _, here, __: told.append(here)).read_bytes() == BODY
    assert server.ranges == [f"bytes={HALF}-"]
    assert told[0] > HALF
    assert names(tmp_path) == ["data.gz"]


def test_a_server_that_knows_no_ranges_sends_all_of_it(server: Server, tmp_path: Path) -> None:
    server.answers["plain"] = lambda handler: send(handler, BODY)
    (tmp_path / "data.gz.part").write_bytes(b"x" * HALF)
    assert download(server.item("plain"), tmp_path).read_bytes() == BODY


def test_a_part_that_is_whole_is_only_verified(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.gz.part").write_bytes(BODY)
    assert download(server.item(), tmp_path).read_bytes() == BODY
    assert server.ranges == []


@pytest.mark.parametrize("junk", [b"x" * HALF, b"x" * len(BODY), BODY + b"x", b"x" * (len(BODY) + 5)])
def test_a_part_of_another_file_costs_one_more_download(server: Server, tmp_path: Path, junk: bytes) -> None:
    (tmp_path / "data.gz.part").write_bytes(junk)
    assert download(server.item(), tmp_path).read_bytes() == BODY
    assert names(tmp_path) == ["data.gz"]


def test_a_cut_connection_is_taken_up_again(server: Server, tmp_path: Path) -> None:
    answers = iter([cut, send_file])
    server.answers["cut"] = lambda handler: next(answers)(handler)
    assert download(server.item("cut"), tmp_path).read_bytes() == BODY
    assert server.ranges == [None, f"bytes={HALF}-"]


def test_a_connection_that_keeps_breaking_leaves_what_came(server: Server, tmp_path: Path) -> None:
    def pieces(handler: BaseHTTPRequestHandler) -> None:
        start = int((handler.headers["Range"] or "bytes=0-")[6:-1])
        handler.send_response(206)
        handler.send_header("Content-Length", str(len(BODY) - start))
        handler.send_header("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
        handler.end_headers()
        handler.wfile.write(BODY[start : start + 1000])
        handler.close_connection = True

    server.answers["slow"] = pieces
    with pytest.raises(DPAPError) as caught:
        download(server.item("slow"), tmp_path, tries=3)
    assert len(server.ranges) == 3
    assert "the connection broke off" in caught.value.what
    assert f"3,000 of {len(BODY):,} bytes are kept" in caught.value.what
    assert "run the same again" in caught.value.fix
    assert names(tmp_path) == ["data.gz.part"]
    assert (tmp_path / "data.gz.part").read_bytes() == BODY[:3000]
    assert download(server.item(), tmp_path).read_bytes() == BODY


def test_another_file_of_the_same_size_is_refused(server: Server, tmp_path: Path) -> None:
    wrong = b"x" * len(BODY)
    server.answers["wrong"] = lambda handler: send(handler, wrong)
    with pytest.raises(DPAPError) as caught:
        download(server.item("wrong"), tmp_path)
    assert CHECKSUM in caught.value.what
    assert hashlib.md5(wrong).hexdigest() in caught.value.what
    assert names(tmp_path) == []


def test_a_login_page_is_refused_unread(server: Server, tmp_path: Path) -> None:
    server.answers["login"] = lambda handler: send(handler, b"<html>log in</html>")
    with pytest.raises(DPAPError, match=f"it has 19 bytes, expected {len(BODY):,}") as caught:
        download(server.item("login"), tmp_path)
    assert "login" in caught.value.fix
    assert names(tmp_path) == []


def test_an_answer_without_length_that_does_not_end_is_refused(server: Server, tmp_path: Path) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(BODY + b"x")
        handler.close_connection = True

    server.answers["endless"] = endless
    with pytest.raises(DPAPError, match="more than"):
        download(server.item("endless"), tmp_path)
    assert names(tmp_path) == []


def test_a_part_other_than_the_one_asked_for_is_not_used(server: Server, tmp_path: Path) -> None:
    def first(handler: BaseHTTPRequestHandler) -> None:
        if handler.headers["Range"]:
            send(handler, BODY[:10], status=206, Content_Range=f"bytes 0-9/{len(BODY)}")
        else:
            send(handler, BODY)

    server.answers["first"] = first
    (tmp_path / "data.gz.part").write_bytes(BODY[:HALF])
    assert download(server.item("first"), tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("status", [403, 404, 503])
def test_an_address_that_has_nothing(server: Server, tmp_path: Path, status: int) -> None:
    server.answers["gone"] = lambda handler: send(handler, b"", status=status)
    with pytest.raises(DPAPError, match=f"the server answers {status}") as caught:
        download(server.item("gone"), tmp_path)
    assert caught.value.where == server.item("gone").url
    assert str(tmp_path) in caught.value.fix
    assert CHECKSUM in caught.value.fix
    assert names(tmp_path) == []


def test_offline(server: Server, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/data.gz"
    with pytest.raises(DPAPError, match="no connection") as caught:
        download(server.item(url=url), tmp_path / "new")
    assert caught.value.where == url
    assert f"get {url} (1.02 MB) and put it into {tmp_path / 'new'} as data.gz" in caught.value.fix
    assert names(tmp_path) == []


def test_a_silent_server_is_not_waited_for(server: Server, tmp_path: Path) -> None:
    done = threading.Event()

    def silent(handler: BaseHTTPRequestHandler) -> None:
        done.wait(10)
        handler.close_connection = True

    server.answers["silent"] = silent
    try:
        with pytest.raises(DPAPError, match="no connection .*timed out"):
            download(server.item("silent"), tmp_path, timeout=0.2)
    finally:
        done.set()


def test_a_server_that_falls_silent_is_asked_again(server: Server, tmp_path: Path) -> None:
    done = threading.Event()

    def half(handler: BaseHTTPRequestHandler) -> None:
        cut(handler)
        handler.wfile.flush()
        done.wait(10)

    answers = iter([half, send_file])
    server.answers["half"] = lambda handler: next(answers)(handler)
    try:
        assert download(server.item("half"), tmp_path, timeout=0.3).read_bytes() == BODY
    finally:
        done.set()
    first, second = server.ranges
    assert first is None
    assert second is not None
    assert 0 < int(second[6:-1]) <= HALF


def test_a_full_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(web._Transfer, "_receive", full)
    with pytest.raises(DPAPError, match="data.gz cannot be written: the disk is full") as caught:
        download(server.item(), tmp_path)
    assert caught.value.where == str(tmp_path)


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DPAPError, match="cannot be written") as caught:
        download(server.item(), tmp_path / "file")
    assert caught.value.where == str(tmp_path / "file")


def test_two_at_a_time_download_once(server: Server, tmp_path: Path) -> None:
    began, go = threading.Event(), threading.Event()

    def slow(handler: BaseHTTPRequestHandler) -> None:
        began.set()
        go.wait(10)
        send_file(handler)

    server.answers["slow"] = slow
    threads = [threading.Thread(target=download, args=(server.item("slow"), tmp_path)) for _ in range(2)]
    threads[0].start()
    assert began.wait(10)
    threads[1].start()
    threads[1].join(0.2)
    assert threads[1].is_alive(), "it waits for the first"
    go.set()
    for thread in threads:
        thread.join()
    assert server.ranges == [None]
    assert (tmp_path / "data.gz").read_bytes() == BODY
    assert names(tmp_path) == ["data.gz"]


def test_sizes_as_people_say_them() -> None:
    assert [megabytes(size) for size in (170_052_171, 9_912_422, 28_881, 4_542)] == [
        "170 MB",
        "9.91 MB",
        "0.03 MB",
        "0.005 MB",
    ]
