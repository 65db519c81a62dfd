"""Where a server listens: an address, or a Unix socket that only its own user may open."""

from __future__ import annotations

import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from interlock.errors import InterlockError

if TYPE_CHECKING:
    from interlock.config import ServerConfig


def listen(server: ServerConfig) -> socket.socket:
    """A socket that is bound where *server* says. Raises `InterlockError` where that cannot be."""
    if server.socket is not None:
        return _bound_file(Path(server.socket))
    host, port = server.host, server.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named so that asyncio, too, turns off the delay of small writes on what it accepts.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise InterlockError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port"
        ) from None
    listening.setblocking(False)
    return listening


def _bound_file(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(path)
        listening.bind(str(path))
        path.chmod(0o600)  # before anybody can connect, which needs somebody who listens
    except OSError as error:
        listening.close()
        reason = error.strerror or str(error)
        raise InterlockError(f"cannot listen on {path}: {reason}; choose another with --socket") from None
    listening.setblocking(False)
    return listening


def _clear(path: Path) -> None:
    """Remove the socket of a server that was killed; raises `OSError` for anything else that is there."""
    try:
        there = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(there.st_mode):
        raise FileExistsError(0, "something else than a socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        try:
            caller.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise FileExistsError(0, "a server listens there")


def leave(server: ServerConfig, listening: socket.socket) -> None:
    """Close *listening*, and remove its file, if that is its own still."""
    listening.close()
    if server.socket is not None:
        with suppress(OSError):  # somebody else has removed it
            Path(server.socket).unlink()
