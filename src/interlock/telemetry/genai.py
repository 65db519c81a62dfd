"""Names of OpenTelemetry's semantic conventions that we use.

Those of generative AI are still incubating, and their package promises nothing: it is read by a test, which
holds these against it, and never at run time.
"""

from __future__ import annotations

from typing import Final

OPERATION_NAME: Final = "gen_ai.operation.name"
PROVIDER_NAME: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
CONVERSATION_ID: Final = "gen_ai.conversation.id"
OPERATION_DURATION: Final = "gen_ai.client.operation.duration"

CHAT: Final = "chat"
TEXT_COMPLETION: Final = "text_completion"
EMBEDDINGS: Final = "embeddings"
INVOKE_AGENT: Final = "invoke_agent"

ERROR_TYPE: Final = "error.type"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
METHOD: Final = "http.request.method"
ROUTE: Final = "http.route"
STATUS: Final = "http.response.status_code"

_OPERATIONS: Final = {
    "chat/completions": CHAT,
    "responses": CHAT,
    "messages": CHAT,
    "completions": TEXT_COMPLETION,
    "complete": TEXT_COMPLETION,
    "embeddings": EMBEDDINGS,
}


def operation(path: str) -> str | None:
    """What a call to *path* at a provider does; None where the conventions have no word for it."""
    ends = path.strip("/").split("/")
    return _OPERATIONS.get("/".join(ends[-2:])) or _OPERATIONS.get(ends[-1])
