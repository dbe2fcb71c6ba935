"""Names of clusters: what they mean, which one is in use, and tokens that stay private."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from eagleray.cli.main import app
from eagleray.clusters.profiles import ClusterProfiles, resolve_cluster
from eagleray.core.errors import ExitCode, UnknownNameError, UserError
from eagleray.core.settings import Settings

HEAD = "ray-jobs+https://ray.example.com"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("EAGLERAY_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    return Settings(home=tmp_path / "home")


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text("abc123\n")
    file.chmod(0o600)
    return file


def cluster(*words: str) -> Result:
    return CliRunner().invoke(app, ["cluster", *words])


def sentence(result: Result) -> str:
    return " ".join(result.output.split())


def test_a_name_means_an_address_and_a_token(settings: Settings, token_file: Path) -> None:
    assert cluster("add", "gpus", HEAD, "--token-file", str(token_file)).exit_code == 0
    found = resolve_cluster("gpus", settings)
    assert found is not None
    assert (found.address, found.url) == (HEAD, "https://ray.example.com:443")
    assert found.secret() == "abc123"
    assert "abc123" not in (settings.home_folder / "clusters.json").read_text()
    assert HEAD in cluster("list", "--json").output


def test_commands_run_on_the_cluster_in_use(settings: Settings) -> None:
    assert resolve_cluster(None, settings) is None
    cluster("add", "gpus", HEAD)
    assert resolve_cluster(None, settings) is None
    assert "run on gpus" in sentence(cluster("use", "gpus"))
    found = resolve_cluster(None, settings)
    assert found is not None
    assert found.address == HEAD
    named = resolve_cluster("auto", settings)
    assert named is not None
    assert named.address == "auto"
    cluster("use", "--off")
    assert resolve_cluster(None, settings) is None


def test_the_setting_goes_before_the_cluster_in_use(settings: Settings) -> None:
    cluster("add", "gpus", HEAD)
    cluster("use", "gpus")
    found = resolve_cluster(None, settings.model_copy(update={"ray_address": "auto"}))
    assert found is not None
    assert found.address == "auto"


def test_a_name_that_is_removed_is_no_longer_in_use(settings: Settings) -> None:
    cluster("add", "gpus", HEAD)
    cluster("use", "gpus")
    assert cluster("remove", "gpus").exit_code == 0
    assert ClusterProfiles.read(settings) == ClusterProfiles()


def test_unknown_names_are_refused_with_the_nearest(settings: Settings) -> None:
    cluster("add", "gpus", HEAD)
    with pytest.raises(UnknownNameError, match="Nearest: gpus"):
        resolve_cluster("gpu", settings)
    assert cluster("use", "cpus").exit_code == ExitCode.USER
    assert cluster("remove", "cpus").exit_code == ExitCode.USER


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("add", "auto", HEAD), "'auto' cannot be the name of a cluster"),
        (("add", "a:b", HEAD), "'a:b' cannot be the name of a cluster"),
        (("add", "gpus", "ray://head:10001"), "Ray Client does not carry Ray Data"),
        (("use",), "Name a cluster, or give --off, and not both."),
    ],
)
def test_mistakes_are_told_and_change_nothing(
    settings: Settings, words: tuple[str, ...], fault: str
) -> None:
    result = cluster(*words)
    assert result.exit_code == ExitCode.USER
    assert fault in sentence(result)
    assert ClusterProfiles.read(settings) == ClusterProfiles()


def test_a_token_that_others_can_read_is_refused(settings: Settings, token_file: Path) -> None:
    token_file.chmod(0o644)
    result = cluster("add", "gpus", HEAD, "--token-file", str(token_file))
    assert result.exit_code == ExitCode.USER
    assert f"chmod 600 {token_file}" in result.output.replace("\n", "")
    assert ClusterProfiles.read(settings) == ClusterProfiles()


def test_a_token_comes_from_the_environment_or_is_missed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster("add", "gpus", HEAD)
    found = resolve_cluster("gpus", settings)
    assert found is not None
    with pytest.raises(UserError, match=r"There is no token .* set RAY_AUTH_TOKEN"):
        found.secret()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "xyz")
    assert found.secret() == "xyz"


def test_a_damaged_file_of_clusters_is_told(settings: Settings) -> None:
    settings.make_home()
    (settings.home_folder / "clusters.json").write_text("{")
    result = cluster("list")
    assert result.exit_code == ExitCode.USER
    assert "cannot be read" in sentence(result)


SERVICE = "https://images.example.com"


def test_a_service_takes_a_key_and_never_the_token(
    settings: Settings, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the token")
    assert cluster("add", "images", SERVICE, "--key-file", str(token_file)).exit_code == 0
    cluster("add", "plain", SERVICE)
    found, plain = (resolve_cluster(name, settings) for name in ("images", "plain"))
    assert found is not None
    assert plain is not None
    assert (found.url, found.secret()) == (SERVICE, "abc123")
    with pytest.raises(UserError, match=r"There is no key .* set EAGLERAY_API_KEY"):
        plain.secret()
    monkeypatch.setenv("EAGLERAY_API_KEY", "er_key")
    assert plain.secret() == "er_key"
    assert "abc123" not in (settings.home_folder / "clusters.json").read_text()


@pytest.mark.parametrize(
    ("address", "option", "fault"),
    [
        (SERVICE, "--token-file", "keep the cluster's token inside the cluster"),
        (HEAD, "--key-file", "--key-file is for the key of a service"),
        ("http://images.example.com", "--key-file", "would send the application's key"),
    ],
)
def test_a_secret_goes_to_its_own_door_only(
    settings: Settings, token_file: Path, address: str, option: str, fault: str
) -> None:
    result = cluster("add", "images", address, option, str(token_file))
    assert result.exit_code == ExitCode.USER
    assert fault in sentence(result)
    assert ClusterProfiles.read(settings) == ClusterProfiles()
