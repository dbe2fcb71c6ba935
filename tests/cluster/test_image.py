"""The image: its recipe, what is sent to its build, and its bill of materials."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys

from tests.support.manifests import ROOT, tool

RECIPE = ROOT / "cluster/Dockerfile"


def test_the_recipe_has_no_faults() -> None:
    said = subprocess.run(
        [tool("hadolint"), str(RECIPE)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (said.returncode, said.stdout) == (0, "")


def test_the_image_runs_as_the_user_of_the_manifests() -> None:
    last_stage = RECIPE.read_text().rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (.*)$", last_stage, re.MULTILINE) == ["10001:10001"]
    assert "HEALTHCHECK" not in RECIPE.read_text().replace("# Health", "")
    manifests = [path.read_text() for path in (ROOT / "cluster/kubernetes").rglob("*.yaml")]
    users = {user for text in manifests for user in re.findall(r"runAsUser: (\d+)", text)}
    assert users == {"10001"}


def test_every_package_is_installed_from_a_lock_with_hashes() -> None:
    recipe = RECIPE.read_text().replace("\\\n", " ")
    installs = re.findall(r"(?:pip install|uv build)[^&\n]*", recipe)
    assert len(installs) == 4
    unlocked = [one for one in installs if "--require-hashes" not in one]
    assert [re.sub(r"\s+", " ", one).strip() for one in unlocked] == [
        "pip install --no-deps dist/eagleray-*.whl"  # made in the line before
    ]


def test_only_what_the_image_copies_is_sent_to_its_build() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    sent = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = set()
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", RECIPE.read_text(), re.MULTILINE):
        copied.update(sources.split())
    assert sent == copied
    for path in sent:
        assert list(ROOT.glob(path)), path


def test_the_bill_of_materials_lists_every_package_with_its_version() -> None:
    command = [sys.executable, str(ROOT / "cluster/sbom.py")]
    first, second = (
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        for _ in range(2)
    )
    assert first == second
    bill = json.loads(first)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    versions = {one["purl"].partition("@")[0]: one["version"] for one in bill["components"]}
    for name in ("ray", "torch", "mlflow"):
        assert versions[f"pkg:pypi/{name}"] == importlib.metadata.version(name)
    assert versions["pkg:generic/python"] == sys.version.split()[0]
    references = [one["bom-ref"] for one in bill["components"]]
    assert len(references) == len(set(references)) > 100
