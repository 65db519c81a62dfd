"""The configuration: what it reads, from where, and how it refuses."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest

from interlock.config import (
    AgentConfig,
    Config,
    GatewayConfig,
    LimitsConfig,
    PoolConfig,
    ProviderConfig,
    ServerConfig,
    WordingConfig,
    describe,
    load_config,
    parse_capacity,
    parse_duration,
)
from interlock.errors import ValidationError
from interlock.secret import Secret

FULL = """
store = "sqlite:////var/lib/interlock.db"
coordination = "http://host:7411"
[server]
host = "0.0.0.0"
port = 0
token = "env:SERVER_TOKEN"
allowed_hosts = ["interlock.example"]
[limits]
sessions = 100
runs = "unlimited"
tools = 1
global = 1_000_000
[providers.openai]
api_key = "sk-literal"
limit = 4
cooldown = "0s"
cooldown_cancelled = "2s"
cooldown_failed = "1m"
usage = "/usage"
usage_repoll = "500ms"
usage_timeout = "0s"
recovery = "probe"
recovery_window = "1h"
default_pause = "1.5s"
slot_timeout = "1d"
[[providers.openai.wordings]]
reason = "concurrency"
text = "too many at once"
[providers."my-llama"]
base_url = "http://[::1]:8080/v1/"
usage = "llama.cpp"
[gateway]
ping_after = "5s"
timeout = "10m"
max_body = "1MiB"
[pools.coders]
agent = "coder"
size = 2
max_overflow = 0
strategy = "fifo"
[agents.coder]
type = "command"
command = ["my-agent", "--json"]
input = "argument"
output = "text"
[agents.writer]
type = "chat"
provider = "openai"
model = "gpt-5"
dialect = "anthropic"
system = "Be brief."
[agents.mine]
type = "python"
target = "my_module:my_agent"
"""

OPENAI = "https://api.openai.com/v1"
ANTHROPIC = "https://api.anthropic.com"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(text: str, **env: str) -> Config:
    Path("interlock.toml").write_text(text, encoding="utf-8")
    return load_config(env=env)


def refused(text: str, **env: str) -> str:
    with pytest.raises(ValidationError) as caught:
        read(text, **env)
    assert "\n" not in caught.value.message
    return caught.value.message


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("350ms", 0.35),
        ("5s", 5.0),
        ("1.5s", 1.5),
        ("2m", 120.0),
        ("1h", 3600.0),
        ("1d", 86400.0),
        ("0s", 0.0),
        ("0.5ms", 0.0005),
        ("24h", 86400.0),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    """Every unit counts in seconds, and "350ms" is 0.35 to the last bit."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "5",
        "",
        "s",
        "-5s",
        "5 s",
        "5S",
        "5sec",
        "1e3s",
        ".5s",
        "5.s",
        "\N{ARABIC-INDIC DIGIT FIVE}s",
        "5s\n",
        "1d1h",
        "25h",
        "9" * 400 + "s",
        5,
        0,
        0.35,
        float("inf"),
        True,
        None,
        [],
        {},
    ],
)
def test_no_other_duration(value: object) -> None:
    """Numbers without a unit, negatives and more than a day are refused, in one line."""
    with pytest.raises(ValidationError, match="is not a duration") as caught:
        parse_duration(value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("value", "expected"), [(1, 1), (1_000_000, 1_000_000)])
def test_a_capacity_is_a_number_from_one(value: object, expected: int) -> None:
    """From 1 to a million, or "unlimited", which is None."""
    assert parse_capacity(value) == expected
    assert parse_capacity("unlimited") is None


@pytest.mark.parametrize(
    "value", [0, -1, 1_000_001, True, False, 1.0, "4", "", "Unlimited", None, [], 10**4000]
)
def test_no_other_capacity(value: object) -> None:
    """Zero, negatives and what only looks like a number are refused."""
    with pytest.raises(ValidationError, match='from 1 to 1000000, or "unlimited"'):
        parse_capacity(value)


def test_a_secret_shows_itself_nowhere() -> None:
    """Whatever prints, formats, encodes or pickles a secret gets ***; only reveal() does not."""
    secret = Secret("sk-1")
    shown = [str(secret), repr(secret), f"{secret}", f"{secret!r:>3}", "%s" % secret]  # noqa: UP031
    assert shown == ["***"] * 5
    assert json.dumps([secret]) == '["***"]'
    assert msgspec.json.encode([secret], enc_hook=str) == b'["***"]'
    assert b"sk-1" not in pickle.dumps(secret)
    assert pickle.loads(pickle.dumps(secret)).reveal() == "***"
    assert not hasattr(secret, "__dict__")
    assert secret.reveal() == copy.deepcopy(secret).reveal() == "sk-1"


def test_secrets_are_equal_by_what_they_hide() -> None:
    """Two configurations that differ in a key only are not equal."""
    assert Secret("a") == Secret("a")
    assert hash(Secret("a")) == hash(Secret("a"))
    assert Secret("a") != Secret("b")
    assert Secret("a") != "***"
    assert Secret("***") != "***"


# -- where values come from ------------------------------------------------------------------------


def test_everything_can_be_written() -> None:
    """Each key of each table lands in the field of its name."""
    assert read(FULL, SERVER_TOKEN="t") == Config(
        store="sqlite:////var/lib/interlock.db",
        coordination="http://host:7411",
        server=ServerConfig(host="0.0.0.0", port=0, token=Secret("t"), allowed_hosts=("interlock.example",)),
        limits=LimitsConfig(sessions=100, runs=None, streams=None, tools=1, global_=1_000_000),
        providers={
            "openai": ProviderConfig(
                id="openai",
                base_url=OPENAI,
                api_key=Secret("sk-literal"),
                limit=4,
                cooldown=0.0,
                cooldown_cancelled=2.0,
                cooldown_failed=60.0,
                usage="/usage",
                usage_repoll=0.5,
                usage_timeout=0.0,
                recovery="probe",
                recovery_window=3600.0,
                default_pause=1.5,
                slot_timeout=86400.0,
                wordings=(WordingConfig(reason="concurrency", text="too many at once"),),
            ),
            "my-llama": ProviderConfig(id="my-llama", base_url="http://[::1]:8080/v1", usage="llama.cpp"),
        },
        gateway=GatewayConfig(ping_after=5.0, timeout=600.0, max_body=1 << 20),
        pools={"coders": PoolConfig(agent="coder", size=2, max_overflow=0, strategy="fifo")},
        agents={
            "coder": AgentConfig(
                type="command", command=("my-agent", "--json"), input="argument", output="text"
            ),
            "writer": AgentConfig(
                type="chat", provider="openai", model="gpt-5", dialect="anthropic", system="Be brief."
            ),
            "mine": AgentConfig(type="python", target="my_module:my_agent"),
        },
    )


def test_the_defaults() -> None:
    """Without a file: a local server with SQLite, no limits, and both well-known providers."""
    config = load_config(env={})
    assert (config.store, config.coordination) == ("sqlite:///interlock.db", "local")
    assert (config.server.host, config.server.port, config.server.token) == (
        "127.0.0.1",
        7411,
        None,
    )
    assert config.limits == LimitsConfig()
    assert (config.gateway.ping_after, config.gateway.timeout) == (15.0, 300.0)
    assert config.gateway.max_body == 32 * 1024 * 1024
    assert config.providers == {
        "openai": ProviderConfig(id="openai", base_url=OPENAI),
        "anthropic": ProviderConfig(id="anthropic", base_url=ANTHROPIC),
    }


def test_keys_in_the_environment_make_providers() -> None:
    """Those whose keys are there, with these keys; an empty variable is none."""
    assert load_config(env={"OPENAI_API_KEY": "k", "ANTHROPIC_API_KEY": ""}).providers == {
        "openai": ProviderConfig(id="openai", base_url=OPENAI, api_key=Secret("k"))
    }
    both = load_config(env={"OPENAI_API_KEY": "a", "ANTHROPIC_API_KEY": "b"}).providers
    assert [(p.base_url, p.api_key and p.api_key.reveal()) for p in both.values()] == [
        (OPENAI, "a"),
        (ANTHROPIC, "b"),
    ]


def test_a_key_that_no_header_can_carry_is_refused() -> None:
    """A line break in a variable is told here, by its name, and not by every request later."""
    with pytest.raises(ValidationError, match=r"^OPENAI_API_KEY: providers\.openai\.api_key: "):
        load_config(env={"OPENAI_API_KEY": "sk-1\n"})


def test_the_base_url_of_another_client_is_not_ours() -> None:
    """OPENAI_BASE_URL may well name this very gateway."""
    config = load_config(env={"OPENAI_BASE_URL": "http://127.0.0.1:7411/gateway/openai"})
    assert config.providers["openai"].base_url == OPENAI


def test_configured_providers_are_all_there_are() -> None:
    """With a provider in the file, keys in the environment make none and go to none."""
    config = read("[providers.openai]\nlimit = 4", OPENAI_API_KEY="k", ANTHROPIC_API_KEY="k")
    assert config.providers == {"openai": ProviderConfig(id="openai", base_url=OPENAI, limit=4)}
    config = read('[providers.openai]\nbase_url = "http://h/"')
    assert config.providers["openai"].base_url == "http://h"


def test_the_environment_wins_over_the_file() -> None:
    """INTERLOCK_ and the path of the key, with __ between the levels."""
    config = read(
        FULL,
        SERVER_TOKEN="t",
        INTERLOCK_STORE="memory:",
        INTERLOCK_SERVER__PORT="7500",
        INTERLOCK_SERVER__ALLOWED_HOSTS="a.example, b.example",
        INTERLOCK_LIMITS__SESSIONS="unlimited",
        INTERLOCK_LIMITS__GLOBAL="16",
        INTERLOCK_PROVIDERS__OPENAI__API_KEY="env:MINE",
        INTERLOCK_PROVIDERS__MY_LLAMA__COOLDOWN="1s",
        INTERLOCK_PROVIDERS__NEW__BASE_URL="https://new.example",
        INTERLOCK_AGENTS__CODER__COMMAND="other 'a b'",
        MINE="sk-2",
    )
    assert config.store == "memory:"
    assert config.server.port == 7500
    assert config.server.allowed_hosts == ("a.example", "b.example")
    assert (config.limits.sessions, config.limits.global_) == (None, 16)
    assert config.providers["openai"].api_key == Secret("sk-2")
    assert config.providers["my-llama"].cooldown == 1.0
    assert list(config.providers) == ["openai", "my-llama", "new"]
    assert config.agents["coder"].command == ("other", "a b")
    assert type(config.store) is type(config.providers["new"].base_url) is str


def test_the_environment_changes_the_offered_providers() -> None:
    """Without a file, a variable adds to what the keys have made."""
    config = load_config(env={"OPENAI_API_KEY": "k", "INTERLOCK_PROVIDERS__OPENAI__LIMIT": "4"})
    expected = ProviderConfig(id="openai", base_url=OPENAI, api_key=Secret("k"), limit=4)
    assert config.providers == {"openai": expected}


def test_the_variables_of_others_are_left_alone() -> None:
    """A token for the client, and what a cluster sets for a service called interlock."""
    env = {
        "INTERLOCK_TOKEN": "t",
        "INTERLOCK_PORT": "tcp://10.0.0.1:7411",
        "INTERLOCK_SERVICE_HOST": "10.0.0.1",
        "INTERLOCK_PORT_7411_TCP_ADDR": "10.0.0.1",
        "INTERLOCK_SERVER_PORT": "tcp://10.0.0.1:7411",
        "INTERLOCK_AGENT": "x",
    }
    assert load_config(env=env) == load_config(env={})


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    """The default file may be missing; one that was named may not."""
    with pytest.raises(ValidationError) as caught:
        load_config("no.toml", env={})
    assert caught.value.message == "no.toml: cannot be read: No such file or directory"
    (tmp_path / "other.toml").write_text("[server]\nport = 1")
    assert load_config(tmp_path / "other.toml", env={}).server.port == 1


# -- refusals --------------------------------------------------------------------------------------

PROVIDER = '[providers.p]\nbase_url = "http://h"\n'

SERVER_KEYS = (
    "host, port, socket, token, allowed_hosts, log_format, max_connections, max_connections_per_address, "
    "max_waiting, max_waiting_per_limit, max_waiting_bytes"
)
TABLES = "known here: store, coordination, server, limits, providers, gateway, pools, agents, retention"
PORT = "is not a whole number from 0 to 65535"
CAPACITY = 'is not a whole number from 1 to 1000000, or "unlimited"'
LIST = 'is not a list of texts, such as ["a", "b"]'
DURATION = 'is not a duration with its unit, such as "350ms", "5s", "1.5s", "2m", "1h" or "1d"'
SIZE = 'is not a size: bytes as a whole number, or text such as "512KiB" or "32MiB"'
USAGE = 'is not a path such as "/usage", "llama.cpp" or "vllm"'
COMMAND = 'is not a program and its arguments, such as ["my-agent", "--json"]'
STORE = 'is not "memory:", "sqlite:///file.db", "sqlite:////directory/file.db" or "postgresql://..."'


@pytest.mark.parametrize(
    ("text", "key", "fault"),
    [
        (
            "[server]\nprot = 1",
            "server.prot",
            f"not a known key; did you mean port? known here: {SERVER_KEYS}",
        ),
        ("[sever]", "sever", f"not a known key; did you mean server? {TABLES}"),
        ("zzz = 1", "zzz", f"not a known key; {TABLES}"),
        ('"a\\nb" = 1', '"a\\nb"', f"not a known key; {TABLES}"),
        (
            "[limits]\nglobal_ = 1",
            "limits.global_",
            "not a known key; did you mean global? known here: sessions, runs, streams, tools, global",
        ),
        ("server = 1", "server", "1 is not a table"),
        ("providers = []", "providers", "a list is not a table"),
        ("[server]\nport = 65536", "server.port", f"65536 {PORT}"),
        ('[server]\nport = "80"', "server.port", f'"80" {PORT}'),
        ("[server]\nport = true", "server.port", f"true {PORT}"),
        (
            '[server]\nhost = ""',
            "server.host",
            '"" is not a non-empty text without control characters',
        ),
        ('[server]\nallowed_hosts = "a"', "server.allowed_hosts", f'"a" {LIST}'),
        ('[server]\ntoken = "env:NO"', "server.token", "the environment variable NO is not set"),
        ("[limits]\nruns = 0", "limits.runs", f"0 {CAPACITY}"),
        ("[gateway]\nmax_body = 0", "gateway.max_body", f"0 {SIZE}"),
        ('[gateway]\nmax_body = "1MB"', "gateway.max_body", f'"1MB" {SIZE}'),
        ("[gateway]\ntimeout = 300", "gateway.timeout", f"300 {DURATION}"),
        ("[providers.p]\nlimit = 1", "providers.p.base_url", "is needed, but not set"),
        (
            PROVIDER + 'usage_repoll = "0s"',
            "providers.p.usage_repoll",
            '"0s" is not a duration above 0',
        ),
        (PROVIDER + 'usage = "usage"', "providers.p.usage", f'"usage" {USAGE}'),
        (PROVIDER + 'usage = "/../keys"', "providers.p.usage", f'"/../keys" {USAGE}'),
        (
            PROVIDER + 'recovery = "auto"',
            "providers.p.recovery",
            '"auto" is not "manual" or "probe"',
        ),
        (PROVIDER + "wordings = {}", "providers.p.wordings", "a table is not a list of tables"),
        (
            PROVIDER + 'wordings = [{ reason = "rate" }]',
            "providers.p.wordings.0",
            "needs code or text",
        ),
        (
            PROVIDER + 'wordings = [{ text = "x" }]',
            "providers.p.wordings.0.reason",
            "is needed, but not set",
        ),
        (
            '[providers."a/b"]\nbase_url = "http://h"',
            'providers."a/b"',
            "not a name: at most 128 letters, digits and . _ : @ -",
        ),
        (
            '[agents.a]\ntype = "shell"',
            "agents.a.type",
            '"shell" is not "command" or "chat" or "python"',
        ),
        (
            '[agents.a]\ntype = "chat"\nprovider = "openai"',
            "agents.a.model",
            "is needed, but not set, for an agent of type chat",
        ),
        (
            '[agents.a]\ntype = "python"\ntarget = "m:f"\ncommand = ["x"]',
            "agents.a.command",
            "is not for an agent of type python",
        ),
        (
            '[agents.a]\ntype = "python"\ntarget = "os.system"',
            "agents.a.target",
            '"os.system" is not "module:name", such as "my_agents:coder"',
        ),
        ('[agents.a]\ntype = "command"\ncommand = []', "agents.a.command", f"a list {COMMAND}"),
        (
            '[agents.a]\ntype = "command"\ncommand = ["x"]\noutput = "xml"',
            "agents.a.output",
            '"xml" is not "text" or "json"',
        ),
        (
            '[agents.a]\ntype = "chat"\nprovider = "p"\nmodel = "m"',
            "agents.a.provider",
            '"p" is not configured; configured: openai, anthropic',
        ),
        ('[pools.p]\nagent = "a"', "pools.p.agent", '"a" is not configured; configured: none'),
        (
            '[pools.p]\nagent = "a"\nsize = 0',
            "pools.p.size",
            "0 is not a whole number from 1 to 1000000",
        ),
        ('store = "mysql://h"', "store", f'"mysql://h" {STORE}'),
        (
            'coordination = "global"',
            "coordination",
            '"global" is not "local", "http://host:7411" or "redis://host:6379"',
        ),
    ],
)
def test_a_refusal_names_file_key_fault_and_remedy(text: str, key: str, fault: str) -> None:
    """One line: the file, the dotted key, what was wrong, what is allowed."""
    assert refused(text) == f"interlock.toml: {key}: {fault}"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("SERVER__PORT", "http", f'server.port: "http" {PORT}'),
        ("SERVER__PORT", "", f'server.port: "" {PORT}'),
        ("LIMITS__RUNS", "-1", f'limits.runs: "-1" {CAPACITY}'),
        (
            "SERVER__PROT",
            "1",
            f"server.prot: not a known key; did you mean port? known here: {SERVER_KEYS}",
        ),
        ("SERVER", "x", 'server: "x" is not a table'),
        ("STORE__X", "x", f"store: a table {STORE}"),
        ("PROVIDERS__NEW__LIMIT", "4", "providers.new.base_url: is needed, but not set"),
        ("SERVER__TOKEN", "env:NO", "server.token: the environment variable NO is not set"),
        ("STROE", "memory:", "not a known key; did you mean INTERLOCK_STORE?"),
        ("SERVER_PORT", "7500", "not a known key; did you mean INTERLOCK_SERVER__PORT?"),
    ],
)
def test_a_refusal_names_the_variable(variable: str, value: str, message: str) -> None:
    """What the environment set is not looked for in the file."""
    name = f"INTERLOCK_{variable}"
    with pytest.raises(ValidationError) as caught:
        load_config(env={name: value})
    assert caught.value.message == f"{name}: {message}"
    assert caught.value.details["source"] == name


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("a = 1\nb = \n", "interlock.toml:2: not valid TOML: Invalid value"),
        ("a = 1\na = 2\n", "interlock.toml:2: not valid TOML: Cannot overwrite a value"),
        ("[server", "interlock.toml: not valid TOML: Expected ']'"),
        (f"a = {'9' * 5000}", "interlock.toml: not valid TOML: "),
        ("a = " + "[" * 5000, "interlock.toml: "),
    ],
)
def test_bad_toml_names_the_line(text: str, start: str) -> None:
    """The file, the line where there is one, and the reason."""
    assert refused(text).startswith(start)


def test_other_encodings_are_refused() -> None:
    """A file that is not UTF-8 is told as such."""
    Path("interlock.toml").write_bytes(b'store = "\xff"')
    with pytest.raises(ValidationError, match=r"^interlock\.toml: not valid TOML: .*utf-8"):
        load_config(env={})


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h",
        "ftp://h",
        "http://",
        "http:///v1",
        "http://u:sk-1@h",
        "https://h/v1?key=sk-1",
        "http://h#f",
        "http://h\\@evil",
        "http://h /",
        "http://h\n",
        "http://h:99999",
        "http://h:x",
        "http://[::g]",
        "http://h/a/../b",
        "HTTP:h",
        "http://h\x00",
        "http://hé",
    ],
)
def test_a_base_url_is_a_plain_one(url: str) -> None:
    """http or https, a host, perhaps a port and a path; no password in it is repeated."""
    message = refused(f"[providers.p]\nbase_url = {json.dumps(url)}")
    assert message.startswith("interlock.toml: providers.p.base_url: ")
    assert "sk-1" not in message


@pytest.mark.parametrize(
    "text",
    [
        "[server]\ntoken = 'sk-1 '",
        "[server]\ntoken = ['sk-1']",
        PROVIDER + "api_key = 'sk-1é'",
        PROVIDER + "api_kye = 'sk-1'",
        "store = 'mysql://u:sk-1@h'",
        "coordination = 'rediss:/u:sk-1@h'",
    ],
)
def test_a_refused_secret_is_not_repeated(text: str) -> None:
    """The message says what is wrong without the value."""
    assert "sk-1" not in refused(text)


# -- what is shown ---------------------------------------------------------------------------------


def shown(config: Config) -> list[str]:
    return [json.dumps(describe(config)), repr(config), str(config), repr(config.providers)]


def test_what_is_shown_holds_no_secret() -> None:
    """Neither keys nor passwords in URLs, neither described nor printed."""
    text = FULL.replace("sqlite:////var/lib/interlock.db", "postgresql://u:sk-p/@w@h/db?password=sk-q")
    config = read(text.replace("http://host:7411", "redis://:sk-r@h"), SERVER_TOKEN="sk-t")
    assert config.store == "postgresql://u:sk-p/@w@h/db?password=sk-q"
    assert not [s for s in shown(config) if "sk-" in s]
    plain = describe(config)
    assert plain["store"] == "postgresql://***@h/db?***"
    assert plain["coordination"] == "redis://***@h"
    assert plain["server"]["token"] == plain["providers"]["openai"]["api_key"] == "***"


def test_what_is_described_is_the_configuration() -> None:
    """JSON values under the keys of the file; nothing but secrets is hidden."""
    plain: dict[str, Any] = describe(read(FULL, SERVER_TOKEN="t"))
    assert json.loads(json.dumps(plain)) == plain
    assert plain["store"] == "sqlite:////var/lib/interlock.db"
    assert plain["limits"] == {
        "sessions": 100, "runs": None, "streams": None, "tools": 1, "global": 1_000_000
    }  # fmt: skip
    assert plain["agents"]["coder"]["command"] == ["my-agent", "--json"]
    assert plain["providers"]["openai"]["cooldown_failed"] == 60.0
