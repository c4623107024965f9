"""What answers at an address, told by real sockets."""

import errno
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bsconv_nas.errors import SearchError
from bsconv_nas.search import address
from bsconv_nas.search.address import check_address

SETTINGS = bytes.fromhex("000018040000000000")  # the frame with which Ray 2.60 answers


@contextmanager
def listening(answer: Callable[[bytes], bytes]) -> Iterator[str]:
    """Answer one connection and give the address."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(answer(connection.recv(64)))

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join()


@pytest.fixture(autouse=True)
def no_address_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_USE_TLS", raising=False)


@pytest.mark.parametrize(
    "wrong",
    ["", "somewhere", "ray://head:10001", "head:", ":6379", "head:6379x", "head:65536", "head:123456", "a b:1", "1:²"],
)
def test_an_address_has_a_host_and_a_port(wrong: str) -> None:
    with pytest.raises(SearchError, match=r"--address must be 'auto' or HOST:PORT, such as 10\.0\.0\.1:6379, but got "):
        check_address(wrong)


@pytest.fixture
def unheard() -> Iterator[str]:
    """An address that is taken, so that nobody else can listen there."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{holder.getsockname()[1]}"


def test_where_nobody_listens_is_no_cluster(unheard: str) -> None:
    refused = re.escape(f"must answer at --address {unheard!r}, but: {os.strerror(errno.ECONNREFUSED)}; check host and")
    with pytest.raises(SearchError, match=refused):
        check_address(unheard)


@pytest.mark.parametrize("wrong", ["[::1]:1", "a..b:6379"])  # refused, or no such family on this machine; no name
def test_what_cannot_be_reached_is_no_cluster(wrong: str) -> None:
    with pytest.raises(SearchError, match=r"must answer at --address '[^']+', but: .+; check host and port\.$"):
        check_address(wrong)


def test_an_unknown_name_is_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*place: object, **_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "unknown name")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(SearchError, match="must answer at --address 'nowhere:6379', but: unknown name; check host and"):
        check_address("nowhere:6379")


def test_a_grpc_server_may_be_a_cluster() -> None:
    greetings = []

    def answer(greeting: bytes) -> bytes:
        greetings.append(greeting)
        return SETTINGS

    with listening(answer) as place:
        check_address(place)
    assert greetings[0].startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.7\r\n", b"", SETTINGS[:3]])
def test_whoever_does_not_speak_grpc_is_no_cluster(said: bytes) -> None:
    with (
        listening(lambda greeting: said) as place,
        pytest.raises(SearchError, match="but something else does; check the port, which `ray start --head` prints"),
    ):
        check_address(place)


def test_a_web_server_is_no_cluster() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Quiet", (BaseHTTPRequestHandler,), {"log_message": print})) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        with pytest.raises(SearchError, match="something else does"):
            check_address(f"127.0.0.1:{web.server_port}")
        web.shutdown()
        thread.join()


def test_whoever_says_nothing_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(SearchError, match="but: timed out; check"):
        check_address(f"127.0.0.1:{server.getsockname()[1]}")


def test_behind_tls_a_listener_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_address(f"127.0.0.1:{server.getsockname()[1]}")


def test_auto_is_what_the_environment_says_or_what_ray_finds(unheard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_address("auto")
    monkeypatch.setenv("RAY_ADDRESS", unheard)
    with pytest.raises(SearchError, match=f"must answer at --address '{unheard}', but: "):
        check_address("auto")
