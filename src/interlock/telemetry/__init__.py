"""What a fleet tells of itself to tools outside: one module for each of them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interlock.admission.waits import TellsOfWaits
    from interlock.ports import Store
    from interlock.telemetry.otel import OpenTelemetry


def traced(admission: TellsOfWaits, store: Store | None = None) -> OpenTelemetry | None:
    """`interlock.telemetry.otel.instrument`, if OpenTelemetry is set up in this process; else None.

    Whoever sets it up has imported it. Where nobody has, nothing is imported here either.
    """
    if "opentelemetry" not in sys.modules:
        return None
    from interlock.telemetry.otel import instrument, is_set_up

    return instrument(admission, store) if is_set_up() else None
