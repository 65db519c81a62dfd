"""``interlock completion``: what a shell needs to complete our commands and options by itself."""

from __future__ import annotations

from typing import Literal

from interlock.cli import app


def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print the completion script of a shell; it then completes without running anything of ours.

    bash: to ~/.local/share/bash-completion/completions/interlock; zsh: to a file _interlock in a directory of
    fpath; fish: to ~/.config/fish/completions/interlock.fish. A new version has a new one.

    Example: interlock completion bash

    Args:
        shell: whose script.
    """
    print(app.generate_completion(prog_name="interlock", shell=shell))
