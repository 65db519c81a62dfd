"""The files of `examples/deploy` say what docs/deploy.md promises of them, and name what is really there."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from interlock.cli import app
from interlock.cli.serve import DRAIN_SECONDS
from interlock.config import load_config
from processes import _running, command, serve

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "examples/deploy"
UNIT = (DEPLOY / "interlock.service").read_text(encoding="utf-8")
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))

SPARE_SECONDS = 5.0
"""What a server takes at most after its drain, to let go of connections that nobody reads."""

SECTIONS = {
    "Unit": "Description After Wants",
    "Service": """
        Type User Group StateDirectory StateDirectoryMode WorkingDirectory EnvironmentFile LimitNOFILE UMask
        ExecStart ExecReload KillMode KillSignal TimeoutStopSec
        Restart RestartSec RestartPreventExitStatus
        NoNewPrivileges ProtectSystem ProtectHome PrivateTmp PrivateDevices ProtectClock ProtectControlGroups
        ProtectHostname ProtectKernelLogs ProtectKernelModules ProtectKernelTunables ProtectProc
        RestrictAddressFamilies RestrictNamespaces RestrictRealtime RestrictSUIDSGID LockPersonality RemoveIPC
        CapabilityBoundingSet AmbientCapabilities
        SystemCallArchitectures SystemCallFilter SystemCallErrorNumber
        """,
    "Install": "WantedBy",
}
"""Every key of the unit, spelt as systemd.exec(5) does; what systemd does not know it passes over."""

SERVICE_KEYS = {
    *("build", "image", "profiles", "command", "environment", "ports", "volumes", "tmpfs", "healthcheck"),
    *("read_only", "cap_drop", "security_opt", "restart", "stop_grace_period"),
}
"""The keys of a service that compose.yaml uses, spelt as the Compose Specification does."""


def parses(words: list[str]) -> None:
    """`interlock` takes these words."""
    app.parse_args(words, exit_on_error=False, print_error=False)


def seconds(text: str) -> float:
    return float(re.fullmatch(r"([0-9]+)s?", text)[1])  # type: ignore[index]


# -- systemd -------------------------------------------------------------------------------------------------


def unit() -> dict[str, dict[str, list[str]]]:
    """The unit by section and key; a key may come twice."""
    found: dict[str, dict[str, list[str]]] = {}
    section = ""
    for line in UNIT.splitlines():
        if heading := re.fullmatch(r"\[(\w+)\]", line):
            section = heading[1]
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert (bool(section), equals, key) == (True, "=", key.strip()), line
            found.setdefault(section, {}).setdefault(key, []).append(value)
    return found


def test_the_unit_knows_its_keys_and_shuts_the_service_in() -> None:
    found = unit()
    assert found.keys() == SECTIONS.keys()
    for section, keys in SECTIONS.items():
        assert found[section].keys() == set(keys.split())
    service = {key: values[-1] for key, values in found["Service"].items()}
    shut = {
        "User": "interlock",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "CapabilityBoundingSet": "",
    }
    assert {key: service[key] for key in shut} == shut
    assert service["WorkingDirectory"] == f"/var/lib/{service['StateDirectory']}"
    assert (service["Restart"], service["RestartPreventExitStatus"]) == ("on-failure", "2")


def test_the_unit_runs_a_command_that_is_there_and_lets_it_drain() -> None:
    service = unit()["Service"]
    program, *words = shlex.split(service["ExecStart"][0])
    assert program == "/opt/interlock/bin/interlock"
    parses(words)
    assert seconds(service["TimeoutStopSec"][0]) > DRAIN_SECONDS + SPARE_SECONDS
    assert service["KillSignal"] == ["SIGTERM"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here to ask")
def test_systemd_finds_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    """But that its program is elsewhere, which it would be told of before."""
    here = tmp_path / "interlock.service"
    here.write_text(UNIT.replace("/opt/interlock/bin/interlock", sys.executable), encoding="utf-8")
    asked = ["systemd-analyze", "verify", "--man=no", str(here)]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


# -- containers ----------------------------------------------------------------------------------------------


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each stage of the image: name and arguments."""
    found: list[list[tuple[str, str]]] = []
    lines = [line for line in DOCKERFILE.splitlines() if not line.startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if line:
            name, _, arguments = line.partition(" ")
            if name == "FROM":
                found.append([])
            found[-1].append((name, arguments))
    return found


def test_the_image_is_slim_and_not_root_and_has_no_secrets() -> None:
    known = {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL"}
    known |= {"HEALTHCHECK", "ENTRYPOINT", "CMD"}
    build, image = stages()
    assert {name for name, _ in (*build, *image)} <= known
    for stage in (build, image):
        base = stage[0][1].split()[0]
        assert re.fullmatch(r"python:3\.\d+-slim", base), "a tag, and no host"
    said = dict(image)
    assert re.fullmatch(r"[1-9][0-9]*", said["USER"])
    names = [name for name, _ in image]
    assert names.index("USER") > max(n for n, name in enumerate(names) if name in ("RUN", "COPY"))
    words = [word for _, arguments in (*build, *image) for word in arguments.split()]
    secret = [word for word in words if re.search(r"TOKEN|_KEY|SECRET|PASSWORD", word)]
    assert secret == ["INTERLOCK_SERVER__TOKEN=env:INTERLOCK_TOKEN"], "where it is, not what it is"


def test_the_image_is_built_from_what_is_there() -> None:
    """And what it copies is not kept from it."""
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").split("\n")
    build, image = stages()
    copied = [word for name, arguments in build if name == "COPY" for word in arguments.split()[:-1]]
    assert [name for name in copied if not (ROOT / name).exists() or f"!{name}" not in kept] == []
    assert [arguments for name, arguments in image if name == "COPY"] == [
        "--from=build /opt/interlock /opt/interlock"
    ]
    assert [line for line in kept if line and not re.match(r"[#!*]", line)] == []


def healthcheck() -> list[str]:
    """What the image asks for its health, in words."""
    words: list[str] = json.loads(dict(stages()[-1])["HEALTHCHECK"].split("CMD ", 1)[1])
    return words


def test_signals_reach_the_server_in_the_image() -> None:
    """Nothing is run by a shell, which would keep SIGTERM for itself."""
    said = dict(stages()[-1])
    words = [*json.loads(said["ENTRYPOINT"]), *json.loads(said["CMD"])]
    assert words[0] == "interlock"
    parses(words[1:])
    assert said["STOPSIGNAL"] == "SIGTERM"
    assert "/healthz" in healthcheck()[-1]


def composed(variables: dict[str, str]) -> dict[str, str]:
    """The environment of the service, with *variables* in the places for them."""

    def value(place: re.Match[str]) -> str:
        assert place[2] != ":?" or place[1] in variables
        return variables.get(place[1], "")

    given = COMPOSE["services"]["interlock"]["environment"]
    return {name: re.sub(r"\$\{(\w+)(:[?-])[^}]*\}", value, text) for name, text in given.items()}


def test_compose_says_what_can_be_said() -> None:
    assert COMPOSE.keys() == {"name", "services", "volumes"}
    for name, service in COMPOSE["services"].items():
        assert set(service) <= SERVICE_KEYS
        assert "profiles" in service or name == "interlock"
        assert {volume.split(":")[0] for volume in service["volumes"]} <= COMPOSE["volumes"].keys()
        image = service["image"]
        assert "." not in image.split("/")[0].split(":")[0], "no host"
    ours = COMPOSE["services"]["interlock"]
    assert (
        DEPLOY / ours["build"]["context"] / ours["build"]["dockerfile"]
    ).resolve() == DEPLOY / "Dockerfile"
    assert seconds(ours["stop_grace_period"]) > DRAIN_SECONDS + SPARE_SECONDS
    assert all(port.startswith("127.0.0.1:") for port in ours["ports"])
    assert "${INTERLOCK_TOKEN:?" in ours["environment"]["INTERLOCK_TOKEN"]


async def test_a_server_runs_as_in_the_container(tmp_path: Path) -> None:
    """With the image's and the composed environment: healthy, and open only to the token."""
    lines = [arguments for name, arguments in stages()[-1] if name == "ENV"]
    words = [word for line in lines for word in line.split() if word.startswith("INTERLOCK_")]
    image = dict(word.split("=", 1) for word in words)
    refused = await command("serve", "--port", "0", cwd=tmp_path, env=image)
    assert (refused.code, "INTERLOCK_TOKEN is not set" in refused.stderr) == (2, True)

    env = {**image, **composed({"INTERLOCK_TOKEN": "t" * 32})}
    assert load_config(None, env).server.host == "0.0.0.0"
    async with _running("serve", "--port", "0", cwd=tmp_path, env=env) as server:
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        asked = [word.replace("http://127.0.0.1:7411", url) for word in healthcheck()]
        assert asked[0] == "python"
        process = await asyncio.create_subprocess_exec(sys.executable, *asked[1:])
        assert await process.wait() == 0
        status = await command("status", cwd=tmp_path, env={**env, "INTERLOCK_URL": server.url})
        assert (status.code, status.stderr) == (0, "")
        async with httpx2.AsyncClient(trust_env=False) as client:
            named = {"host": "interlock:7411"}
            token = {"authorization": f"Bearer {'t' * 32}"}
            assert (await client.get(f"{url}/limits", headers=named)).status_code == 401
            assert (await client.get(f"{url}/limits", headers=named | token)).status_code == 200


# -- backups -------------------------------------------------------------------------------------------------


async def test_a_backup_is_made_under_a_running_server(tmp_path: Path) -> None:
    """As docs/operate.md has it: by a reader, whole, with all that was acknowledged; the server goes on."""
    backup = tmp_path / "backup.db"
    async with (
        serve(tmp_path, "") as server,
        httpx2.AsyncClient(trust_env=False, base_url=server.url) as client,
    ):

        async def set_tools(capacity: int) -> None:
            (await client.put("/limits/tools", json={"capacity": capacity})).raise_for_status()

        for capacity in range(1, 21):
            await set_tools(capacity)
        source = f"file:{tmp_path / 'interlock.db'}?mode=ro"
        with closing(sqlite3.connect(source, uri=True)) as there, closing(sqlite3.connect(backup)) as here:
            there.backup(here)
            assert here.execute("PRAGMA quick_check").fetchone() == ("ok",)
        await set_tools(30)
        assert server.stderr() == ""

    restored = tmp_path / "restored"
    restored.mkdir()
    backup.rename(restored / "interlock.db")
    async with (
        serve(restored, "") as server,
        httpx2.AsyncClient(trust_env=False, base_url=server.url) as client,
    ):
        limits = (await client.get("/limits")).json()["limits"]
    assert {one["name"]: one["capacity"] for one in limits}["tools"] == 20
