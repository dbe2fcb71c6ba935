"""Sizes that are expected of images which no listing gives."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from eagleray.packing.sizes import ExpectedSizes
from tests.support.batch import listing


def test_tables_of_images_tell_what_their_images_take(tmp_path: Path) -> None:
    plain, nested = tmp_path / "plain.parquet", tmp_path / "nested.parquet"
    pq.write_table(
        pa.table({"x": ["y" * 100] * 50, "image": [b"%08d" % n for n in range(50)]}), plain
    )
    cells = [{"bytes": bytes([n]) * 2000, "path": "p"} for n in range(50)]
    pq.write_table(pa.table({"image": cells}), nested, use_dictionary=False)
    (tmp_path / "broken.parquet").write_text("no")
    uris = [f"parquet://image/0::{path}" for path in (plain, nested, tmp_path / "broken.parquet")]
    rows = listing(5, uris=[*uris, "s3://b/unknown", "/known"], sizes=[None] * 4 + [7])
    rows = rows.set_column(3, "packing", pa.array(["parquet"] * 3 + [None] * 2))
    containers = [uri.partition("::")[2] for uri in uris]
    rows = rows.set_column(4, "container", pa.array([*containers, None, None]))
    in_plain, in_nested, *others = ExpectedSizes()(rows).tolist()
    assert 8 <= in_plain <= 40
    assert 1900 <= in_nested <= 2200
    assert others == [128 * 1024, 128 * 1024, 7]
