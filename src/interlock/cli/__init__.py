"""The ``interlock`` command. Each command lives in a module of its own, imported when it is called."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from interlock import __version__
from interlock.cli.overview import overview
from interlock.errors import InterlockError, ValidationError

app = App(
    name="interlock",
    help="Keep a fleet of LLM agents inside every limit at once, and see why anything waits.",
    version=__version__,
    result_action="return_value",
)
app.command("interlock.cli.serve:serve", name="serve")
app.command("interlock.cli.worker:worker", name="worker")
app.command("interlock.cli.demo:demo", name="demo")
app.command("interlock.cli.status:status", name="status")
app.command("interlock.cli.top:top", name="top")
app.command("interlock.cli.operate:explain", name="explain")
app.command("interlock.cli.operate:limits_app", name="limits")
app.command("interlock.cli.operate:cooldown_app", name="cooldown")
app.command("interlock.cli.operate:pause", name="pause")
app.command("interlock.cli.operate:resume", name="resume")
app.command("interlock.cli.sessions:sessions", name="sessions")
app.command("interlock.cli.sessions:runs", name="runs")
app.command("interlock.cli.submit:submit", name="submit")
app.command("interlock.cli.tail:tail", name="tail")
app.command("interlock.cli.sessions:cancel", name="cancel")
app.command("interlock.cli.sessions:interrupt", name="interrupt")
app.command("interlock.cli.sessions:drain", name="drain")
app.command("interlock.cli.prune:prune", name="prune")
app.command("interlock.cli.simulate:simulate_file", name="simulate")
app.command("interlock.cli.doctor:doctor", name="doctor")
app.command("interlock.cli.token:token_app", name="token")
app.command("interlock.cli.mock_provider:mock_provider", name="mock-provider")
app.command("interlock.cli.completion:completion", name="completion")

config_app = App(name="config", help="Look at a configuration.")
config_app.command("interlock.cli.config:check", name="check")
app.command(config_app)


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line, or *words*. Errors are one line; exit 0 ok, 1 the thing failed, 2 usage."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # text of others, wherever it is shown
    words = list(sys.argv[1:] if words is None else words)
    asked = overview(app) if words in ([], ["--help"], ["-h"]) else app
    try:
        code = asked(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        said = " ".join(str(error).split()).removesuffix("...").rstrip(" .,")
        of = " ".join(("interlock", *(error.command_chain or ())))
        sys.exit(_complain(f"{said}; see {of} --help", 2))
    except ValidationError as error:
        sys.exit(_complain(error.message, 2))
    except InterlockError as error:
        sys.exit(_complain(error.message, 1))
    except BrokenPipeError:  # whoever read what we print has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def _complain(message: str, code: int) -> int:
    print(f"interlock: {message}", file=sys.stderr)
    return code
