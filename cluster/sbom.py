"""Print the bill of materials of an image: its Python and Debian packages, as CycloneDX 1.5 JSON.

    python cluster/sbom.py > eagleray.cdx.json

It runs with the image's own Python and needs the standard library only.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions, version
from typing import Any


def bill_of_materials() -> dict[str, Any]:
    """Return the document; it has no serial number and no time, so equal images have equal ones."""
    found = {component["bom-ref"]: component for component in [*_python(), *_debian()]}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "container",
                "name": "eagleray",
                "version": version("eagleray"),
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            }
        },
        "components": [found[reference] for reference in sorted(found)],
    }


def _python() -> Iterator[dict[str, Any]]:
    yield _component("generic", "python", platform.python_version(), "PSF-2.0")
    for distribution in distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        yield _component("pypi", name, distribution.version, _license(distribution))


def _license(distribution: Distribution) -> str:
    """Return the license in a few words; metadata may hold its whole text instead."""
    fields = distribution.metadata
    classifiers = [
        text.rpartition(" :: ")[2]
        for text in fields.get_all("Classifier") or []
        if text.startswith("License :: ")
    ]
    given = [fields.get("License-Expression"), " AND ".join(classifiers), fields.get("License")]
    return next((text for text in given if text and len(text) < 200 and "\n" not in text), "")


def _debian() -> Iterator[dict[str, Any]]:
    query = shutil.which("dpkg-query")
    if query is None:
        return
    command = [query, "--show", "--showformat=${Package}\t${Version}\t${Architecture}\n"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for line in listed.splitlines():
        name, number, architecture = line.split("\t")
        yield _component("deb/debian", name, number, "", f"?arch={architecture}")


def _component(
    kind: str, name: str, number: str, license_name: str, qualifiers: str = ""
) -> dict[str, Any]:
    url = f"pkg:{kind}/{name}@{number}{qualifiers}"
    named = {"licenses": [{"license": {"name": license_name}}]} if license_name else {}
    return {
        "type": "library", "bom-ref": url, "name": name, "version": number, "purl": url, **named
    }  # fmt: skip


if __name__ == "__main__":
    json.dump(bill_of_materials(), sys.stdout, indent=1)
