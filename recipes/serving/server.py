"""The HTTP server: it binds early, finishes what runs when it is asked to end, and ends at once when asked twice."""

import ipaddress
import os
import socket

import uvicorn

LOCAL_NAMES = ["localhost", "127.0.0.1", "[::1]"]  # of what only this machine reaches: no other name leads to it
GRACE = 10  # seconds beyond the limit of a request, in which all are done


class Server(uvicorn.Server):
    """One that ends with exit status 0 where uvicorn would raise the signal again."""

    def handle_exit(self, sig, frame) -> None:
        """Takes SIGTERM and SIGINT."""
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """A socket at that address, on which nothing listens yet: a port that is taken is found before a model is loaded.

    Raises:
        OSError: the address is taken, or not of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        found = socket.socket(family)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except OSError as error:
        raise OSError(f"cannot serve at --host {host} --port {port}: {error.strerror}") from None
    return found


def is_local(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(app, listening: socket.socket, seconds: float) -> None:
    """Answers requests, none longer than `seconds`, until SIGTERM or Ctrl-C; then those that have come are finished."""
    config = uvicorn.Config(
        app, http="h11", ws="none", lifespan="off", log_level="warning", access_log=False, server_header=False,
        timeout_graceful_shutdown=int(seconds) + GRACE,
    )  # fmt: skip
    Server(config).run(sockets=[listening])
