"""What plots and pages show of long labels."""

from __future__ import annotations

import numpy as np

from eagleray.reports import bar_chart, confusion_matrix, curves, render_page


def test_long_labels_that_differ_at_their_ends_are_told_apart() -> None:
    labels = [f"Hyla_arborea_juvenile_specimen_of_the_{place}" for place in ("north", "south")]
    plots = (
        confusion_matrix(labels, np.eye(2, dtype=np.int64), title="Confusion matrix"),
        bar_chart(labels, [1, 2], title="Images per class"),
        curves([(label * 2, [0, 1], [0, 1]) for label in labels], title="", x_label="", y_label=""),
    )
    for plot in plots:
        assert ">Hyla_arbor" in plot
        assert "…" in plot
        assert "the_north<" in plot
        assert "the_south<" in plot


def test_a_label_that_fits_is_shown_as_it_is() -> None:
    plot = bar_chart(["$5 and $6", "x" * 40], [1, 2], title="Images per class")
    assert ">$5 and $6<" in plot
    assert f">{'x' * 40}<" in plot
    assert "…" not in plot


def test_captions_of_pictures_break_where_they_must() -> None:
    page = render_page("base.html.j2", title="x").decode()
    (rule,) = [line for line in page.splitlines() if "figcaption" in line]
    assert "overflow-wrap: anywhere" in rule
    assert "nowrap" not in rule
