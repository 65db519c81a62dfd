"""What several end-to-end tests need, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2e.tiny_llm import write_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a model that `llm_server` can serve."""
    path = tmp_path_factory.mktemp("llm") / "tiny.gguf"
    write_model(path, width=512)
    return path
