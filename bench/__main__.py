"""`python -m bench`: run the parts, print their tables, keep them as JSON in ``bench/results/``."""

from __future__ import annotations

import argparse
import importlib
import time

from bench.measure import save

PARTS = ("kernel", "limiter", "pool", "sessions", "events", "remote", "redis", "gateway", "goodput", "fanout")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument(
        "--quick", action="store_true", help="fewer and smaller rounds: a look, no measurement"
    )
    parser.add_argument("--markdown", action="store_true", help="print tables ready for the README")
    parser.add_argument(
        "--litellm", action="store_true", help="gateway: install and measure LiteLLM's proxy too"
    )
    arguments = parser.parse_args()
    for part in arguments.parts or PARTS:
        if part not in PARTS:
            parser.error(f"{part!r} is no part; there are {', '.join(PARTS)}")
    for part in arguments.parts or PARTS:
        began = time.monotonic()
        extra = {"litellm": arguments.litellm} if part == "gateway" else {}
        tables = importlib.import_module(f"bench.{part}").run(quick=arguments.quick, **extra)
        for table in tables:
            print(table.markdown() if arguments.markdown else table)
        print(f"{part}: {time.monotonic() - began:.0f} s, figures in {save(part, tables)}\n", flush=True)


if __name__ == "__main__":
    main()
