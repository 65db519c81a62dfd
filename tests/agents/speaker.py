"""A command agent for tests: what it does is in its input. Standard library only."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

CHILD = """
import pathlib, signal, sys, time
def leave(*_):
    pathlib.Path(sys.argv[2]).write_text("tidied up")
    sys.exit()
if "deaf" in sys.argv[1]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "tidy" in sys.argv[1]:
    signal.signal(signal.SIGTERM, leave)
print("child", flush=True)
time.sleep(3600)
"""


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def child(kind: str, what: dict) -> int:
    command = [sys.executable, "-S", "-E", "-c", CHILD, kind, what.get("tidied", "")]
    stdout = subprocess.DEVNULL if what.get("quiet") else None
    return subprocess.Popen(command, stdout=stdout, start_new_session=what.get("apart", False)).pid


def act(what: dict) -> None:
    match what.get("do"):
        case "input":
            names = ("INTERLOCK_SESSION_ID", "INTERLOCK_RUN_ID", "INTERLOCK_ATTEMPT", "WHO")
            values = [os.environ.get(name) for name in names]
            say(output={"input": what, "names": values, "at": str(Path.cwd())})
        case "lines":
            for line in what["lines"]:
                sys.stdout.buffer.write(line.encode("latin-1"))
            sys.stdout.flush()
        case "fail":
            print("x" * 100_000, "I am leaving", file=sys.stderr, flush=True)
            say(output="half")
            sys.exit(what["status"])
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "children":
            if what.get("deaf"):
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            pids = [child(kind, what) for kind in what["children"]]
            say(type="turn_completed", data={"pid": os.getpid(), "children": pids})
            if not what.get("leaves"):
                time.sleep(3600)
            say(output="left them")
        case "flood":
            number = 0
            while number < what.get("lines", 10**9):
                number += 1
                print(f"line {number} {'.' * 80}", flush=True)
                if number % 100 == 0 and what.get("count"):
                    Path(what["count"]).write_text(str(number))
        case "tick":
            while True:
                print("tick", flush=True)
                time.sleep(0.01)


if __name__ == "__main__":
    if "unread" in sys.argv:
        say(output="I did not read it")
    elif "INTERLOCK_INPUT" in os.environ:
        act(json.loads(os.environ["INTERLOCK_INPUT"]))
    elif len(sys.argv) > 1:
        act(json.loads(sys.argv[1]))
    else:
        act(json.loads(sys.stdin.read()))
