"""``interlock --help``: the list of commands, each with the beginning of its own help.

They stand here so that nothing has to be imported to show them; a test holds them against the commands.
"""

from __future__ import annotations

from typing import Final

from cyclopts import App

SAYS: Final = {
    "serve": "Run the gateway and the control plane",
    "worker": "Serve sessions of the store in PostgreSQL that the configuration names",
    "demo": "Watch a fleet of agents with and without Interlock",
    "status": "Show each gate: slots, cooling, queue, pause",
    "top": "Show gates, limits, pools and sessions as they change",
    "explain": "Show who waits, in the order in which they would go",
    "limits": "Show every limit: in use, capacity, who waits",
    "cooldown": "Show the cooldown of every provider that has a limit",
    "pause": "Let nobody in at a provider for a while",
    "resume": "End the pause of a provider",
    "sessions": "Show every session; with an id, what this one does",
    "runs": "Show the runs of a session, or the unfinished ones of all",
    "submit": "Submit a run",
    "tail": "Show the events of a session",
    "cancel": "End runs",
    "interrupt": "Stop runs that work",
    "drain": "Take no new runs into a session until those that it has are done",
    "prune": "Remove what is older than is kept",
    "simulate": "Simulate a scenario and its what-ifs",
    "doctor": "Check everything",
    "token": "Make, list and revoke the tokens that open a server",
    "mock-provider": "Run a provider that counts late and punishes overshoot",
    "completion": "Print the completion script of a shell",
    "config": "Look at a configuration",
}


def overview(app: App) -> App:
    """Something that shows the commands of *app*, and runs none of them."""
    shown = App(name=app.name, help=app.help, version=app.version, result_action="return_value")
    for name in app:
        if not name.startswith("-"):
            shown.command("interlock.cli:main", name=name, help=f"{SAYS.get(name, name)}.")
    return shown
