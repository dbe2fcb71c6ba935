"""Users without a name, folders that cannot be written, proxies, streams, narrow terminals."""

from __future__ import annotations

import errno
import io
import json
import os
import pwd
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest

import eagleray
from eagleray.cli import main as front_door
from eagleray.cli.console import Console, command_errors, open_streams
from eagleray.cli.job import run_command
from eagleray.core.environment import (
    bypass_proxy_for_loopback,
    ray_temporary_folder,
    set_user_variables,
)
from eagleray.core.errors import ExitCode, InputError, UserError
from eagleray.core.settings import Settings, read_settings
from eagleray.jobs import demo, evaluate, explain, inspect, pack, predict, train, tune
from eagleray.registry.registry import Registry
from eagleray.serve import run as serve

DEAD_PROXY = "http://127.0.0.1:9"  # a port without a listener

UNKNOWN_USER = """
import pwd, sys
def nobody(number):
    raise KeyError(number)
pwd.getpwuid = nobody
from eagleray.cli.main import main
sys.argv = ["eagleray", "models", "list"]
main()
"""


def test_a_user_without_an_entry_and_a_home_can_use_the_registry(tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-c", UNKNOWN_USER],
        env={k: v for k, v in os.environ.items() if k not in ("HOME", "USER", "LOGNAME")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert "No model is registered yet" in said.stdout


@pytest.mark.parametrize(("given", "expected"), [(None, "/srv/home"), ("/root", "/root")])
def test_an_unknown_user_lives_in_the_home_folder(
    given: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.delenv("LOGNAME", raising=False)
    monkeypatch.delenv("USER", raising=False)
    monkeypatch.setenv("HOME", given or "")
    if given is None:
        monkeypatch.delenv("HOME")
    set_user_variables(Path("/srv/home"))
    assert os.environ["HOME"] == expected
    assert os.environ["USER"] == str(os.getuid())


JOBS: dict[str, tuple[ModuleType, str]] = {
    "demo": (demo, ""),
    "evaluate": (evaluate, "random:lenet5 images"),
    "explain": (explain, "random:lenet5 images --output page.html"),
    "inspect": (inspect, "images --output page.html"),
    "pack": (pack, "images --output out"),
    "predict": (predict, "images --model random:lenet5 --output out"),
    "serve": (serve, ""),
    "train": (train, "images --name x"),
    "tune": (tune, "images --name x"),
}


@pytest.mark.parametrize("job", JOBS)
def test_a_home_that_cannot_be_written_is_found_before_anything_else(
    job: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    home = tmp_path / "file/home"
    monkeypatch.setenv("EAGLERAY_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    program, words = JOBS[job]
    monkeypatch.setattr(sys, "argv", [job, *words.split()])
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "*")
    with pytest.raises(SystemExit) as caught:
        run_command(program.main, module_docstring=program.__doc__)
    assert caught.value.code == ExitCode.USER
    assert capsys.readouterr().err == (
        f"error: The home folder {home} cannot be written (Not a directory); set EAGLERAY_HOME to "
        "a folder that can be.\n"
    )


def test_folders_without_permission_and_files_are_no_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EAGLERAY_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"\(File exists\); set EAGLERAY_HOME"):
        read_settings().make_home()
    monkeypatch.setenv("EAGLERAY_HOME", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the system's superuser may all
    with pytest.raises(UserError, match=r"\(no permission to write there\); set EAGLERAY_HOME"):
        read_settings().make_home()


def test_a_home_is_named_by_a_setting_or_by_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    monkeypatch.setenv("EAGLERAY_HOME", "")  # as a container's template leaves it
    assert read_settings().home_folder == tmp_path / "folder/.eagleray"
    (tmp_path / "folder").rmdir()
    with pytest.raises(InputError, match=r"EAGLERAY_HOME: \.eagleray is not a folder here"):
        read_settings()


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_temporary_folder_too_long_for_sockets_is_named(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, f"/tmp/{'é' * 18}")
    with pytest.raises(UserError) as caught:
        ray_temporary_folder()
    assert str(caught.value) == (
        f"{variable} is too long for the paths of Ray's sockets (41 bytes, at most 39 fit): "
        f"/tmp/{'é' * 18}; set RAY_TMPDIR to a shorter path, such as /tmp."
    )


def test_the_temporary_folder_is_rays_own_or_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/tmp")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "of a length that no socket has room for"))
    monkeypatch.setenv("RAY_TMPDIR", ".")
    assert ray_temporary_folder() == f"/tmp/ray-{os.getuid()}"
    monkeypatch.setenv("RAY_TMPDIR", "")
    monkeypatch.setenv("TMPDIR", "")
    assert ray_temporary_folder() == f"/tmp/ray-{os.getuid()}"
    monkeypatch.setenv("TMPDIR", "/dev/null/x")
    with pytest.raises(UserError, match=r"/dev/null/x cannot be written .* set RAY_TMPDIR"):
        ray_temporary_folder()


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="s-") as name:
        yield Path(name)


def test_rays_folder_is_entered_by_its_owner_alone(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    assert ray_temporary_folder() == str(short)  # it is ours alone
    short.chmod(0o1777)
    private = short / f"ray-{os.getuid()}"
    for _ in range(2):
        assert ray_temporary_folder() == str(private)
        assert private.stat().st_mode & 0o777 == 0o700
        private.chmod(0o777)
    monkeypatch.setenv("RAY_TMPDIR", str(short / "new"))
    assert ray_temporary_folder() == str(short / "new")
    assert (short / "new").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_another_user_has_put_there_is_not_rays(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    short.chmod(0o1777)
    planted = short / f"ray-{os.getuid()}"
    (short / "elsewhere").mkdir()
    planted.symlink_to(short / "elsewhere")
    with pytest.raises(
        UserError, match=r"belongs to another user, .* set RAY_TMPDIR to a folder of"
    ):
        ray_temporary_folder()
    planted.unlink()
    if os.getuid() != 0:
        pytest.skip("only root can make a folder another user's")
    planted.mkdir()
    os.chown(planted, 65534, 65534)
    with pytest.raises(
        UserError, match=r"belongs to another user, .* set RAY_TMPDIR to a folder of"
    ):
        ray_temporary_folder()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, "localhost,127.0.0.1,::1"),
        ("example.com, localhost", "example.com,localhost,127.0.0.1,::1"),
        ("*", "*"),
    ],
)
def test_no_proxy_is_used_for_this_machine(
    given: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, given or "")
    bypass_proxy_for_loopback()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == expected


class NoBatches(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'{"batches": []}'
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


def test_a_client_calls_a_service_of_this_machine_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, DEAD_PROXY)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), NoBatches) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            client = eagleray.Client(f"http://127.0.0.1:{server.server_port}", attempts=1)
            assert client.batches.list() == []
        finally:
            server.shutdown()


def ascii_output(monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    open_streams()
    return written


def test_what_the_locale_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    written = ascii_output(monkeypatch)
    Console().say("Grün … caf\udce9.jpg")
    sys.stdout.flush()
    assert written.getvalue() == b"Gr\\xfcn \\u2026 caf\\udce9.jpg\n"


def test_json_is_json_in_every_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    written = ascii_output(monkeypatch)
    Console(json_output=True).emit({"label": "Grün", "file": "caf\udce9.jpg"})
    assert json.loads(written.getvalue()) == {"label": "Grün", "file": "caf\udce9.jpg"}


CLOSED = (
    "from eagleray.cli.console import *; open_streams(); Console().say('x'); Console().warn('x')"
)


def test_closed_streams_are_opened_on_nothing() -> None:
    shell = f'exec "{sys.executable}" -c "{CLOSED}" <&- >&- 2>&-'
    assert subprocess.run(["bash", "-c", shell], check=False).returncode == 0


FULL = """
from eagleray.cli.console import *
with command_errors():
    Console(json_output=True).emit({"x": "y"})
"""


def test_a_full_disk_under_the_output_is_one_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        said = subprocess.run(
            [sys.executable, "-c", FULL],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert said.returncode == ExitCode.JOB_FAILED
    assert said.stderr == (
        "error: Nothing more can be written (No space left on device); free space there, or name "
        "another output or EAGLERAY_HOME, and run the command again.\n"
    )


def test_a_full_disk_elsewhere_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, command_errors():
        raise OSError(errno.ENOSPC, "No space left on device", "/data/part-0")
    assert caught.value.code == ExitCode.JOB_FAILED
    assert "Nothing more can be written to /data/part-0 (" in capsys.readouterr().err
    with pytest.raises(PermissionError), command_errors():  # a defect of ours keeps its traceback
        raise PermissionError(errno.EACCES, "Permission denied", "/data/part-0")


def test_no_column_vanishes_in_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "10")
    Console().table("Models", list("abcdef"), [["digits"] * 6])
    assert capsys.readouterr().out.count("digits") == 6


def test_a_checkout_without_links_says_how_to_clone_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "jobs").write_text("../../jobs")  # what git writes where links are switched off
    monkeypatch.setattr(eagleray, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(SystemExit) as caught:
        front_door._launch("predict", "eagleray.jobs.predict", [])
    assert caught.value.code == ExitCode.USER
    assert "git clone -c core.symlinks=true" in capsys.readouterr().err


def test_a_registry_of_ones_own_that_is_broken_names_its_folder(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 500)
    with pytest.raises(UserError, match="file is not a database") as caught:
        Registry(Settings(home=tmp_path))
    assert str(caught.value).endswith(
        f"check that {tmp_path} has room and can be written, or set EAGLERAY_HOME."
    )
