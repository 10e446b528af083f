"""Addresses of Ray clusters: their forms, and what is refused before Ray is asked to join one."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
from typing import Final

from gradless.errors import BadInput
from gradless.system import terminal

HERE: Final = "ray"
RUNNING: Final = "auto"
CLIENT: Final = "ray://"
FORMS: Final = "ray (a cluster of this machine alone), auto (the one that runs here), HOST:PORT or ray://HOST:PORT"
ADDRESS: Final = re.compile(r"(?:ray://)?(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\]):[0-9]{1,5}")
CONNECTING: Final = 5.0  # seconds for the answer of a cluster
SETTINGS: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How a client begins to talk to a service of Ray; the answer is a frame of the type 4, too."""
FRAME: Final = 9  # bytes of the head of a frame


def check_form(address: str) -> None:
    """Refuse what names no cluster.

    Raises:
        BadInput: another form, or Ray is not installed.
    """
    if address not in (HERE, RUNNING) and not ADDRESS.fullmatch(address):
        raise BadInput(f"'{terminal.escaped(address)}' names no cluster: write {FORMS}")
    if importlib.util.find_spec("ray") is None:
        raise BadInput("'ray' is not installed: pip install 'gradless[ray]'")


def check_joined(address: str) -> None:
    """Refuse a cluster beside the one that this program has joined.

    Raises:
        BadInput: with the cluster that it has joined.
    """
    import ray

    joined_address = getattr(ray.get_runtime_context(), "gcs_address", "")  # which a client of a cluster does not know
    if address not in (RUNNING, joined_address):
        raise BadInput(
            f"this program has joined {f'the Ray cluster {joined_address}' if joined_address else 'a Ray cluster'} "
            f"already, and cannot join {address}: give auto for that one, or call ray.shutdown() before"
        )


def check_there(address: str) -> None:
    """Refuse an address at which nothing listens, or something else than Ray: Ray itself would wait for minutes.

    Raises:
        BadInput: with the reason.
    """
    host, _, port = address.removeprefix(CLIENT).rpartition(":")
    problem = ""
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECTING) as connection:
            if os.environ.get("RAY_USE_TLS") in (None, "0"):
                connection.settimeout(CONNECTING)
                connection.sendall(SETTINGS)
                with connection.makefile("rb") as answer:
                    frame = answer.read(FRAME)  # which may come in parts
                if frame[3:4] != b"\x04":
                    problem = "another service listens there"
    except (OSError, OverflowError, ValueError) as error:
        problem = (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
    if problem:
        raise BadInput(f"there is no Ray cluster at {address} ({problem}): start it, or correct --on")
