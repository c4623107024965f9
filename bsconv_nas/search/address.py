"""Whether a Ray cluster answers at an address: told in a moment and without Ray, which tries for minutes."""

from __future__ import annotations

import os
import re
import socket

from bsconv_nas.errors import SearchError

__all__ = ["check_address"]

AUTO = "auto"
PATIENCE = 5.0  # seconds for a cluster to answer at its port
# HTTP/2's preface and empty settings, which a gRPC server such as Ray's answers with settings of its own (RFC 9113).
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
SETTINGS = b"\x04"  # the type of a frame, its fourth byte


def check_address(address: str) -> None:
    """Refuse an address at which no Ray cluster can be.

    Args:
        address: `HOST:PORT`, or `auto`: `$RAY_ADDRESS` where it is set, else what Ray itself will look for.

    Raises:
        SearchError: neither of them, nobody listens there, or it is no gRPC server.
    """
    place = os.environ.get("RAY_ADDRESS", AUTO) if address == AUTO else address
    if place == AUTO:
        return
    found = re.fullmatch(r"\[?([\w.:-]+?)\]?:(\d{1,5})", place, re.ASCII)
    if found is None or int(found[2]) > 65535:
        raise SearchError(f"--address must be 'auto' or HOST:PORT, such as 10.0.0.1:6379, but got {place!r}.")
    try:
        greeted = _greet(found[1], int(found[2]))
    except (OSError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or error
        raise SearchError(
            f"A Ray cluster must answer at --address {place!r}, but: {said}; check host and port."
        ) from None
    if not greeted:
        raise SearchError(
            f"A Ray cluster must answer at --address {place!r}, but something else does; check the port, which "
            "`ray start --head` prints."
        )


def _greet(host: str, port: int) -> bool:
    """Return whether a gRPC server answers; behind TLS it is believed."""
    with socket.create_connection((host, port), timeout=PATIENCE) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return True
        connection.sendall(GREETING)
        return connection.recv(9)[3:4] == SETTINGS
