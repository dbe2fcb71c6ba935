"""Commands as a user types them, in an empty folder and from the wheel."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from PIL import Image

from eagleray.core.types import TOLERANCE
from eagleray.data.digits import BROKEN_FILES
from tests.support.installed import Installed

NUM_DIGITS = 1797

Answer = subprocess.CompletedProcess[str]
Command = Callable[..., Answer]


@pytest.fixture(scope="module")
def command(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Run `eagleray` in an empty folder, or in one that is named."""
    empty = tmp_path_factory.mktemp("empty")

    def run(*words: str, home: Path, cwd: Path = empty) -> Answer:
        return subprocess.run(
            [installed.command, *words],
            cwd=cwd,
            env=installed.environment(EAGLERAY_HOME=str(home)),
            capture_output=True,
            text=True,
            check=False,
            timeout=580,
        )

    return run


@pytest.fixture(scope="module")
def demo(
    command: Command, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, dict[str, object]]]:
    """The demo, run once: its home, and what it said."""
    home = tmp_path_factory.mktemp("demo")
    answer = command("demo", "--json", home=home)
    assert answer.returncode == 0, answer.stderr
    said: dict[str, dict[str, object]] = json.loads(answer.stdout)
    return home, said


Demo = tuple[Path, dict[str, dict[str, object]]]


def test_the_demo_learns_the_digits(demo: Demo) -> None:
    _, said = demo
    metrics = said["train"]["test"]
    assert isinstance(metrics, dict)
    assert metrics["accuracy"] >= 0.97
    assert said["train"]["model"] == "digits/1"


def test_the_demo_accounts_for_every_file(demo: Demo) -> None:
    home, said = demo
    assert said["predict"]["images"] == NUM_DIGITS + len(BROKEN_FILES)
    rows = pyarrow.parquet.read_table(home / "demo" / "results").to_pylist()
    assert sum(row["status"] == "ok" for row in rows) == NUM_DIGITS
    failed = {Path(row["uri"]).name: row["reason"] for row in rows if row["status"] == "failed"}
    assert failed == BROKEN_FILES
    answers = [row["label"] == Path(row["uri"]).stem[-1] for row in rows if row["status"] == "ok"]
    assert sum(answers) / NUM_DIGITS >= 0.97


def test_the_service_predicts_as_the_batch_job_did(demo: Demo) -> None:
    served: dict[str, Any] = demo[1]["serve"]
    assert served["label"] == served["row"]["label"] == "7"
    assert abs(served["score"] - served["row"]["score"]) <= max(TOLERANCE.values())
    assert served["version"] == 1


def test_the_demos_page_shows_pictures_and_reasons(demo: Demo) -> None:
    page = (demo[0] / "demo/results/_eagleray/report.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 100
    for reason in set(BROKEN_FILES.values()):
        assert f"<code>{reason}</code>" in page


def test_what_the_demo_leaves_can_be_used(demo: Demo, command: Command, tmp_path: Path) -> None:
    home, _ = demo
    listed = json.loads(command("models", "list", "--json", home=home).stdout)
    assert [entry["model"] for entry in listed] == ["digits/1"]
    verified = command("models", "verify", "digits@candidate", home=home)
    assert "is intact" in verified.stdout
    image = home / "demo/images/digit-0000-is-0.png"
    answer = command(
        "predict",
        str(image),
        "--model",
        "digits@candidate",
        "--output",
        str(tmp_path / "out"),
        "--json",
        home=home,
        cwd=home / "demo/images",
    )
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["labels"] == {"0": 1}


def test_ray_is_silent_and_gone(demo: Demo, command: Command, tmp_path: Path) -> None:
    home, _ = demo
    image = home / "demo/images/digit-0001-is-1.png"
    answer = command(
        "predict", str(image), "--model", "digits/1", "--output", str(tmp_path / "out"), home=home
    )
    assert answer.returncode == 0
    noise = [line for line in answer.stderr.splitlines() if line.startswith(("[", "(", "20"))]
    assert noise == []
    assert f"page:  {tmp_path}/out/_eagleray/report.html" in answer.stdout


MISTAKES: list[tuple[list[str], str]] = [
    (["predict", "nowhere/", "--model", "random:resnet18"], "There is no folder or file"),
    (["predict", "EMPTY", "--model", "random:resnet18"], "holds no files"),
    (["predict", "IMAGES", "--model", "no@production"], "No registered model is named 'no'"),
    (["predict", "IMAGES", "--model", "random:resnet81"], "Nearest: resnet18"),
    (["predict", "IMAGES", "--model", "EMPTY"], "is not a model package"),
    (["evaluate", "random:resnet18", "nowhere"], "There is no folder or file nowhere"),
    (["evaluate", "random:resnet18", "TREE"], "'common' is not a label of this model"),
    (["train", "nowhere", "--name", "x"], "There is no folder or file nowhere"),
    (["train", "TABLE", "--name", "x"], "has no column named label"),
    (["train", "IMAGES", "--name", "x", "--architecture", "lenet"], "Nearest: lenet5"),
    (["train", "TREE", "--name", "x"], "; at least 3 are needed"),
    (["train", "TREE", "--name", "x", "--epochs", "0"], "--epochs must be"),
    (["tune", "--resume", "x-1", "--num-trials", "5"], "leave out --num-trials, or begin a new"),
]


@pytest.fixture(scope="module")
def refusals(command: Command, tmp_path_factory: pytest.TempPathFactory) -> list[Answer]:
    """Make every mistake in a process of its own, a few of them at a time."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "EMPTY").mkdir()
    for name in ("IMAGES/1.png", "TREE/common/1.png", "TREE/rare/2.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(folder / name)
    (folder / "TABLE.csv").write_text("path,kind\na.png,b\n")
    places = {"EMPTY": "EMPTY", "IMAGES": "IMAGES", "TREE": "TREE", "TABLE": "TABLE.csv"}

    def make(number: int) -> Answer:
        words = MISTAKES[number][0]
        words = [str(folder / places[word]) if word in places else word for word in words]
        if words[0] == "predict":
            words += ["--output", str(folder / f"out-{number}")]
        answer = command(*words, home=folder / f"home-{number}")
        assert not (folder / f"out-{number}").exists()
        return answer

    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(make, range(len(MISTAKES))))


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_a_users_mistake_is_one_sentence_and_exit_code_2(
    refusals: list[Answer], number: int
) -> None:
    answer = refusals[number]
    assert answer.returncode == 2
    assert MISTAKES[number][1] in answer.stderr
    assert answer.stderr.startswith("error: ")
    assert len(answer.stderr.strip().splitlines()) == 1
    assert answer.stdout == ""


def test_a_complete_output_is_reported_and_one_of_another_plan_is_refused(
    demo: Demo, command: Command
) -> None:
    home, _ = demo
    words = ["predict", str(home / "demo/images"), "--model", "digits/1"]
    words += ["--output", str(home / "demo/results")]
    again = command(*words, home=home)
    assert again.returncode == 0
    assert "is complete already; nothing was run" in again.stderr
    other = command(*words, "--top-k", "3", home=home)
    assert other.returncode == 2
    assert "top_k is 5 there and 3 here" in other.stderr
    shown = command("jobs", "show", str(home / "demo/results"), "--json", home=home)
    assert json.loads(shown.stdout)["reasons"]["truncated"] == 4
