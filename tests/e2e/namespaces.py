"""Hosts of their own for clients, as far as the network goes: namespaces on a bridge, with links to cut.

They take root and the command ``ip``, and a machine that allows it: `refusal` says what is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=10)


class Host:
    """A namespace with one link to the bridge."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = f"/run/netns/{name}"

    def unplug(self) -> None:
        """From now on every packet is dropped, and nobody is told."""
        _ip("link", "set", self.name, "down")

    def plug(self) -> None:
        """They pass again."""
        _ip("link", "set", self.name, "up")


class Bridge:
    """What the hosts are plugged into; this process is at `address`."""

    def __init__(self) -> None:
        number = os.getpid() % 60_000
        self.name = f"fleet{number}"
        self.network = f"10.{200 + number // 250 % 50}.{number % 250}"
        self.address = f"{self.network}.1"
        self._stack = ExitStack()
        self._hosts = 1

    def host(self) -> Host:
        """One more of them."""
        self._hosts += 1
        host = Host(f"{self.name}n{self._hosts}")
        _ip("netns", "add", host.name)
        self._stack.callback(_ip, "netns", "delete", host.name)
        _ip("link", "add", host.name, "type", "veth", "peer", "name", "eth0", "netns", host.name)
        _ip("link", "set", host.name, "master", self.name, "up")
        inside = ("-n", host.name)
        _ip(*inside, "address", "add", f"{self.network}.{self._hosts}/24", "dev", "eth0")
        _ip(*inside, "link", "set", "eth0", "up")
        return host


@contextmanager
def bridge() -> Iterator[Bridge]:
    """A bridge of this process's own, gone with all its hosts in the end."""
    made = Bridge()
    with made._stack:
        _ip("link", "add", made.name, "type", "bridge")
        made._stack.callback(_ip, "link", "delete", made.name)
        _ip("address", "add", f"{made.address}/24", "dev", made.name)
        _ip("link", "set", made.name, "up")
        yield made


def refusal() -> str:
    """Why this machine has no namespaces for us; empty if it has."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        return "hosts on a network of their own take Linux, root and iproute2; the fault proxy does without"
    try:
        with bridge() as made:
            made.host()
    except subprocess.CalledProcessError as error:
        return f"no network for hosts here: {error.stderr.strip()}; the fault proxy does without"
    return ""
