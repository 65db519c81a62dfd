"""Fetch the dashboard's vendored files again, as ``vendor.json`` names them, and note their hashes there.

To move to another version, change it in ``vendor.json`` and run ``make vendor``. It needs npm, which nothing
else here does.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

VENDOR = Path(__file__).parents[1] / "src/interlock/http/dashboard/static/vendor"


def fetch(package: dict[str, Any], directory: Path) -> None:
    """Replace the files of *package* by those of its version."""
    command = ["npm", "pack", "-s", f"{package['name']}@{package['version']}"]
    packed = subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True, timeout=300)
    with tarfile.open(directory / packed.stdout.split()[-1]) as archive:
        for file in package["files"]:
            found = archive.extractfile(f"package/{file['from']}")
            assert found is not None, file["from"]
            content = found.read()
            (VENDOR / file["file"]).write_bytes(content)
            file["sha256"] = sha256(content).hexdigest()


def main() -> None:
    """All packages."""
    noted = VENDOR / "vendor.json"
    packages = json.loads(noted.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as directory:
        for package in packages:
            fetch(package, Path(directory))
    noted.write_text(json.dumps(packages, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
