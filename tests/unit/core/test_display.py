"""Text of others where people read it: what steers or deceives is seen, all else is as it was."""

from __future__ import annotations

import io
import json
import logging
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from eagleray.cli.console import Console, command_errors, open_streams
from eagleray.core.display import escape_cell, escape_json, escape_text, unescape_cell
from eagleray.core.errors import InputError
from eagleray.core.types import OutputFormat
from eagleray.io.arrow_files import column_names, decode_table, encode_table
from eagleray.reports import render_page
from eagleray.serving.logs import log_event, log_to_file
from eagleray.serving.telemetry import Telemetry, by_replica, text_of

HOSTILE = (
    "\x1b]0;owned\x07",
    "\x9b31m",
    "a\x08b\x7f",
    "new\nline",
    "over\rwritten",
    "\u202egnp.exe",
    "\u2066a\u2069",
    "a\u2028b",
    "\udce9",
    "ad\u200bmin",
    "ad\u200dmin",
    "pay\u200cpal",
    "soft\u00adhyphen",
    "\ufeffname",
    "a\U000e0041\U000e007f",
    "fil\u3164ler",
    "digit\u200f",
    "e\ufe0f\ufe0f",
)
LEGITIMATE = (
    "",
    "Grüße, naïve façade",
    "e\u0301te\u0301",
    "日本語、한국어、中文\u3000間",
    "עברית",
    "العربية",
    "می\u200cخواهم",  # noqa: RUF001 — Persian
    "क्\u200dष",
    "👩🏽\u200d🚀 👨\u200d👩\u200d👧 ❤\ufe0f\u200d🔥",
    "🏳\ufe0f\u200d⚧\ufe0f 🙂\u200d↔\ufe0f 1\ufe0f\u20e3",
    "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    "葛\U000e0100",
    "50\u00a0% – “quoted” …",  # noqa: RUF001 — as people write
    r"C:\new\x1b [red]markup[/red] =1+1",
)
STEERS = "\x1b\x07\x08\x7f\x9b\u202e\u2066\u2069\u2028"


def seen(text: str) -> bool:
    """Whether a text has no control characters and no invisible ones."""
    return all(
        unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in text
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_what_steers_or_deceives_is_written_out(text: str) -> None:
    shown = escape_text(text)
    assert seen(shown.replace("\n", "\0"))
    assert "\\" in shown
    assert escape_text(shown) == shown


@pytest.mark.parametrize("text", LEGITIMATE)
def test_a_text_of_any_script_stays_as_it_is(text: str) -> None:
    assert escape_text(text) == text
    assert json.loads(escape_json(json.dumps(text, ensure_ascii=False))) == text


def test_it_is_written_as_python_does() -> None:
    assert escape_text("\x1b[2J\n\r\t\x85") == r"\x1b[2J\n\r\t\x85"
    assert escape_text("a\u202eb\U000e0041\ud83d") == r"a\u202eb\U000e0041\ud83d"
    assert escape_text("a\nb\x1b", keep="\n") == "a\nb\\x1b"


def test_every_character_is_either_shown_or_written_out() -> None:
    for code in range(sys.maxunicode + 1):
        letter = chr(code)
        if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp"):
            assert escape_text(f"a{letter}b").startswith("a\\"), hex(code)
        elif (
            unicodedata.category(letter)[0] in "LNPS"
            and escape_text(f"a{letter}b") != f"a{letter}b"
        ):
            assert letter in "\u115f\u1160\u3164\uffa0", hex(code)  # letters without ink


@pytest.mark.parametrize("text", [*HOSTILE, *LEGITIMATE])
def test_json_reads_back_as_the_same_text(text: str) -> None:
    written = escape_json(json.dumps({text: [text]}, ensure_ascii=False, indent=2))
    assert json.loads(written) == {text: [text]}
    assert not set(STEERS) & set(written)


# --- the terminal -----------------------------------------------------------------------------


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Make both streams a terminal, and return what is written there."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "400")
    written = io.StringIO()
    monkeypatch.setattr(sys, "stdout", written)
    monkeypatch.setattr(sys, "stderr", written)
    return written


def obeyed(written: str) -> str:
    """Return what a terminal would obey of others, beside the colours that rich writes itself."""
    colours_gone = written.replace("\x1b[", "")
    return "".join(letter for letter in colours_gone if letter in STEERS)


EVIL = "cat\x1b]0;owned\x07\x9b31m\u202egnp[red]x[/red][/]\x7f\u2066"


def test_nothing_that_is_said_on_a_terminal_steers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    written = on_terminal(monkeypatch)
    console = Console()
    console.say(EVIL)
    console.note(EVIL)
    console.warn(EVIL)
    console.table(EVIL, [EVIL, "b"], [[EVIL, "1"], ["x", [EVIL, "second"]]])
    console.facts(EVIL, {EVIL: EVIL})
    with console.status(EVIL):
        pass
    with console.progress(EVIL, total=2) as bar:
        bar.advance(1, note=EVIL)
        bar.advance(1, failed=1)
    with pytest.raises(SystemExit), command_errors():
        raise InputError(EVIL)
    assert obeyed(written.getvalue()) == ""
    assert written.getvalue().count("[red]x[/red][/]") >= 11  # no markup is read in it


def test_one_line_of_others_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.say("a.png\nerror: all is lost")
    console.table("Images", ["uri"], [["a.png\nerror: all is lost"]])
    console.warn("left out: a\r\nerror: all is lost")
    with pytest.raises(SystemExit), command_errors():
        raise InputError("a.png\nerror: all is lost")
    streams = capsys.readouterr()
    lines = [*streams.out.splitlines(), *streams.err.splitlines()]
    assert not [line for line in lines if line.startswith("error: all")]


def test_lines_of_a_cell_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    Console().table("Models", ["model", "metrics"], [["digits", ["recall 0.9", "f1 0.8"]]])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "recall 0.9" in line] != [
        line for line in lines if "f1 0.8" in line
    ]


def test_json_for_scripts_steers_no_terminal_and_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8"))
    open_streams()
    value = {text: text for text in (*HOSTILE, *LEGITIMATE)}
    Console(json_output=True).emit_line(value)
    text = written.getvalue().decode()
    assert not set(STEERS) & set(text)
    assert "日本語" in text
    assert json.loads(text) == value


def test_a_defect_shows_its_traceback_without_steering_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    open_streams()
    written = on_terminal(monkeypatch)
    try:
        raise RuntimeError(EVIL)
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    assert obeyed(written.getvalue()) == ""
    assert "Traceback (most recent call last):\n" in written.getvalue()
    assert r"RuntimeError: cat\x1b]0;owned" in written.getvalue()


# --- files and other media --------------------------------------------------------------------


def rows(*texts: str) -> pa.Table:
    return pa.table({"uri": pa.array(texts), "score_\x1b[31m": pa.array(range(len(texts)))})


CELLS = (
    "\x1b]0;owned\x07",
    "\x9b31m",
    "\u202egnp.exe",
    "a\rb",
    "a\r\nb",
    "a\nb\tc",
    "ends\r",
    r"literal \u001b",
    r"\\u202e",
    "\\\x1b",
    "\\\\\x1bu001b",
    r"C:\users\x1b\caf\xe9\ud83d",
    "=cmd|'/c calc'!A1",
    "",
    "日本語 👩\u200d🚀",
)


def test_a_csv_file_steers_no_terminal_and_is_read_back_exactly() -> None:
    table = rows(*CELLS)
    content = encode_table(table, "csv")
    assert not set(STEERS) & set(content.decode())
    assert "\r" not in content.decode().replace("\r\n", "")
    assert decode_table(content, "csv", table.schema).equals(table)
    assert column_names(content, "csv") == table.column_names


@pytest.mark.parametrize("text", CELLS)
def test_an_escaped_cell_can_be_undone(text: str) -> None:
    assert unescape_cell(escape_cell(text)) == text


@pytest.mark.parametrize("text", [r"C:\users\x1b\caf\xe9", "a\nb\tc\r\nd", "=1+1", "👩\u200d🚀"])
def test_a_cell_of_text_is_exact_for_every_reader(text: str) -> None:
    assert escape_cell(text) == text


def test_nested_cells_and_json_lines_are_exact_too() -> None:
    table = pa.table({"top": pa.array([[{"label": EVIL, "score": 0.5}]]), "uri": [EVIL]})
    forms: tuple[OutputFormat, ...] = ("csv", "jsonl")
    for form in forms:
        content = encode_table(table, form)
        assert not set(STEERS) & set(content.decode())
        assert decode_table(content, form, table.schema).equals(table)


def test_pages_show_what_deceives() -> None:
    content = render_page(
        "tune.html.j2",
        title=EVIL,
        facts={EVIL: EVIL},
        summary=EVIL,
        metric=EVIL,
        fields=[EVIL],
        rows=[],
        plots=[f"<svg><text>{EVIL}</text></svg>"],
        specification="a: 1\nb: \u202e\n",
        space="",
    ).decode()
    assert not set(STEERS) & set(content)
    assert "a: 1\nb: \\u202e" in content
    assert r"\x1b]0;owned" in content


def test_metrics_show_what_deceives_and_can_be_read() -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    telemetry = Telemetry()
    telemetry.predictions.labels("digits", 1, EVIL).inc()
    telemetry.predictions.labels("digits", 1, 'quo"te\nbreak\\').inc()
    texts = [
        text_of([({}, telemetry.families())]),
        text_of(by_replica({"one\x1b": telemetry.families()})),
    ]
    for text in texts:
        assert not set(STEERS) & set(text.decode())
        labels: list[Any] = [
            sample.labels["label"]
            for family in parser.text_string_to_metric_families(text.decode())
            for sample in family.samples
            if sample.name == "eagleray_predictions_total"
        ]
        assert sorted(labels) == sorted([escape_text(EVIL), escape_text('quo"te\nbreak\\')])


def test_the_log_is_json_that_steers_no_terminal(tmp_path: Path) -> None:
    logger = logging.getLogger("eagleray")
    before = logger.handlers, logger.propagate, logger.level
    try:
        log_to_file(tmp_path / "service.log")
        log_event(logging.INFO, "failed", path=EVIL)
        logging.getLogger("eagleray.somewhere").error("%s", EVIL)
        logger.handlers[0].close()
    finally:
        logger.handlers, logger.propagate, logger.level = before
    text = (tmp_path / "service.log").read_text()
    assert not set(STEERS) & set(text)
    first, second = map(json.loads, text.splitlines())
    assert (first["path"], second["message"]) == (EVIL, EVIL)
