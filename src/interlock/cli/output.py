"""What commands have in common in what they print."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

Json = Annotated[bool, Parameter(name="--json", negative=())]
"""The switch of every command that prints: a JSON document instead of a table."""
