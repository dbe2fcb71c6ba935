"""Options generated from specifications, and the one sentence for what is invalid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from eagleray.batch.spec import PredictSpec
from eagleray.cli.options import read_spec, with_spec_options
from eagleray.core.errors import InputError, UserError
from eagleray.scheduling.assignment import SPEC_VARIABLE
from eagleray.serving.batches.spec import BatchBody
from eagleray.serving.config import ServiceConfig
from eagleray.serving.jobs.starter import bounded_spec

FINE = {"inputs": ["a"], "model": "m", "output": "o"}


def parse(*words: str) -> dict[str, Any]:
    """Return the fields that the words of a command line give."""
    heard: list[dict[str, Any]] = []
    app = typer.Typer()

    @app.command()
    @with_spec_options(PredictSpec, argument="inputs")
    def main(fields: dict[str, Any]) -> None:
        heard.append(fields)

    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return heard[0]


def test_a_field_is_an_option_and_several_values_are_repeated() -> None:
    words = ["a,b", "c", "--top-k", "3", "--since", "x,y", "--since", "z", "--no-s3-anonymous"]
    fields = parse(*words)
    assert fields == {
        "inputs": ["a,b", "c"],
        "top_k": "3",
        "since": ["x,y", "z"],
        "s3_anonymous": False,
    }
    spec = read_spec(PredictSpec, {**fields, "model": "m", "output": "o"})
    assert (spec.inputs, spec.since, spec.top_k) == (("a,b", "c"), ("x,y", "z"), 3)


def test_what_is_not_given_is_left_to_the_specification() -> None:
    assert parse("a") == {"inputs": ["a"]}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"top_k": "0"}, "--top-k must be greater than or equal to 1."),
        ({"format": "xml"}, "--format: 'xml' is none of parquet, csv, jsonl."),
        ({"max_failures": "some"}, "--max-failures: write a share such as 1%"),
        ({"model": None}, "--model must be"),
        ({"image_timeout": "inf"}, "--image-timeout must be a finite number."),
        ({"allow_path": [""]}, "--allow-path: "),
        ({"tile": "10"}, "--tile: '10' is neither auto nor a number of pixels from 64 to 16,384."),
        ({"tile": "0.5"}, "--tile: '0.5' is neither auto"),
        ({"tile_whole": True}, "--tile-whole: it is for images in tiles; name tile too"),
        ({"tile": "auto", "separate_decoding": True}, "separate_decoding has no tiles"),
        ({"limit": ["cat"]}, "--limit: 'cat' is not a limit such as person>10"),
        ({"limit": ["cat>=0"]}, "--limit: cat>=0 always holds, as no image has fewer than 0"),
    ],
)
def test_an_invalid_option_is_named_as_its_flag(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=r"^[^\n]+$") as caught:
        read_spec(PredictSpec, {**FINE, **fields})
    assert str(caught.value).startswith(sentence)


def test_a_missing_option_is_required() -> None:
    with pytest.raises(InputError, match=r"^--model is required\.$"):
        read_spec(PredictSpec, {"inputs": ["a"], "output": "o"})


def test_options_override_a_file_and_an_error_says_where_it_is(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text("inputs: photos\nmodel: m\noutput: o\ntop_k: 3\nworkers: 2\n")
    spec = read_spec(PredictSpec, {"top_k": "7"}, file=str(file))
    assert (spec.inputs, spec.top_k, spec.worker_range) == (("photos",), 7, (2, 2))
    file.write_text("inputs: photos\nmodel: m\noutput: o\ntop_k: none\n")
    with pytest.raises(InputError, match=rf"^{file}: top_k must be a valid integer[^\n]*$"):
        read_spec(PredictSpec, {}, file=str(file))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("replicas: [", "is not YAML"),
        ("a: b: c\n- d", "line 1 is not YAML"),
        ("- replicas", "holds no fields"),
        ("port: 8000", "No field of a specification is named 'port'"),
        ("port: 8000", "service.yaml: No field"),
        ("replicas: many", "replicas must be a valid integer"),
        (
            "replicas: many\nport: 1\nreplica: 2",
            "service.yaml: port is not a field of a specification",
        ),
        (
            "replicas: many\nreplica: 2",
            "service.yaml: replica is not a field of a specification, but replicas is; ",
        ),
    ],
)
def test_a_file_that_is_no_configuration_is_one_sentence(
    tmp_path: Path, content: str, sentence: str
) -> None:
    (tmp_path / "service.yaml").write_text(content)
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        read_spec(ServiceConfig, {}, file=str(tmp_path / "service.yaml"))
    assert sentence in str(caught.value)


def test_the_service_hands_a_specification_to_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    body = BatchBody.make({**FINE, "column": "--sql=x", "since": "/y"})
    sent = body.job("digits/3", ServiceConfig(), readable=["/photos"], workers=2)
    monkeypatch.setenv(SPEC_VARIABLE, json.dumps(bounded_spec(sent)))
    assert read_spec(PredictSpec, {}, file=f"env:{SPEC_VARIABLE}") == sent


def test_a_specification_that_is_too_long_for_a_variable_is_one_sentence() -> None:
    body = BatchBody.make({**FINE, "inputs": [f"/{number:0200}" for number in range(1000)]})
    with pytest.raises(InputError, match="write them into a table"):
        bounded_spec(body.job("digits/3", ServiceConfig(), readable=[]))
