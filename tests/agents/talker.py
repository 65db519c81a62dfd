"""A process agent for tests: what it does with a request is in the request. Standard library only."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path


def answer(request: dict) -> None:
    what = request["input"]
    match what.get("do"):
        case "echo":
            say({"id": request["id"], "output": what["value"]})
        case "pid":
            say({"id": request["id"], "output": os.getpid()})
        case "fail":
            say({"id": request["id"], "error": what["error"]})
        case "garbage":
            print(what["text"], flush=True)
        case "wrong id":
            say({"id": request["id"] + 7, "output": None})
        case "hang":
            print("I think I will hang", file=sys.stderr, flush=True)
            time.sleep(3600)
        case "long":
            say({"id": request["id"], "output": "x" * what["bytes"]})
        case "exit":
            print("I am leaving", file=sys.stderr, flush=True)
            sys.exit(what["status"])
        case "chatter":
            print("x" * what["bytes"], file=sys.stderr, flush=True)
            say({"id": request["id"], "output": "done"})
        case "child":
            command = [sys.executable, "-c", "import time; time.sleep(3600)"]
            child = subprocess.Popen(command, start_new_session=what.get("leaves", False))
            say({"id": request["id"], "output": child.pid})
        case "environment":
            say({"id": request["id"], "output": [os.environ.get("WHO"), str(Path.cwd())]})


def say(answer: dict) -> None:
    print(json.dumps(answer), flush=True)


for line in sys.stdin:
    answer(json.loads(line))
if "deaf" in sys.argv:
    time.sleep(3600)
