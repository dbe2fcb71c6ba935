"""The origin of versions, and the versions that used an image."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagleray.models.package import Lineage
from eagleray.registry.lineage import ImageUse, find_image_uses, trace_lineage
from eagleray.registry.registry import Registry
from tests.support.models import golden_png, registry_in
from tests.support.registry import EASY, HARD, keep_split, register


def test_lineage_names_data_parent_and_what_the_run_kept(registry: Registry, name: str) -> None:
    (parent,) = register(registry, f"{name}-parent")
    lineage = Lineage.now(data_digest=EASY, test_digest=HARD, parent=parent.digest)
    (child,) = register(registry, name, lineage=lineage)
    assert child.run_id is not None
    registry.client.log_text(child.run_id, "name: digits\n", "spec.yaml")
    origin = trace_lineage(registry, child)
    assert origin.parent == f"{name}-parent/1"
    assert (origin.data_digest, origin.test_digest, origin.split_digest) == (
        EASY,
        HARD,
        None,
    )
    assert origin.specification is not None
    assert Path(origin.specification).read_text() == "name: digits\n"
    assert origin.split is None
    assert trace_lineage(registry, parent).parent is None


def test_a_parent_that_is_not_in_the_registry_is_named_by_its_digest(
    registry: Registry, name: str
) -> None:
    (child,) = register(registry, name, lineage=Lineage.now(parent="c" * 64))
    assert trace_lineage(registry, child).parent == "c" * 64


def test_an_image_is_traced_to_the_versions_that_used_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = registry_in(tmp_path)
    image = tmp_path / "a b.png"
    image.write_bytes(golden_png(0))
    now = str(image.stat().st_mtime_ns)
    versions = register(registry, "digits", 4)
    others = [(f"/other/{index}.png", "1", "two", "train") for index in range(5)]
    keep_split(registry, versions[0], [(str(image), now, "zero", "train"), *others])
    keep_split(registry, versions[1], [*others, (str(image), "1", "one", "test")])
    keep_split(registry, versions[2], others)
    monkeypatch.chdir(tmp_path)
    found = find_image_uses(registry, "a b.png")
    assert found.uri == str(image)
    assert found.uses == (
        ImageUse("digits/2", "test", "one", True),
        ImageUse("digits/1", "train", "zero", False),
    )
    assert found.unknown == ("digits/4",)
    image.unlink()
    assert [use.changed for use in find_image_uses(registry, str(image)).uses] == [None, None]
