"""A service that cannot be started says why, before anything is loaded."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from ray import serve
from ray.exceptions import RayError

from eagleray.core.errors import InputError, JobFailedError, UnknownNameError, UserError
from eagleray.core.system import free_port
from eagleray.importing.hosted import import_hosted
from eagleray.importing.spec import ImportSpec
from eagleray.serve.deployment import deploy
from eagleray.serve.gateway.join import GatewayAddress
from eagleray.serve.gateway.sockets import ListenAddress, open_sockets, private_folder
from eagleray.serve.run import require_names
from eagleray.serving.callers.admission import Access
from eagleray.serving.config import ServiceConfig
from tests.support.inference_server import model_server
from tests.support.serving import registry_with

ACCESS = Access(keyless=True, database="", last_change=0)
ADDRESS = GatewayAddress("/nowhere/join.sock", "/nowhere", "secret")


def test_a_start_that_takes_too_long_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(**_: object) -> None:
        raise TimeoutError("Controller not available after 60s.")  # as Ray Serve's own

    monkeypatch.setattr(serve, "start", give_up)
    with pytest.raises(JobFailedError, match=r"after 60s\.\); the machine may be too busy"):
        deploy(ServiceConfig(), ACCESS, ADDRESS)


def test_a_controller_that_dies_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(**_: object) -> None:
        raise RayError("a traceback\nPermissionError: Permission denied: '/tmp/x'")

    monkeypatch.setattr(serve, "start", die)
    with pytest.raises(JobFailedError, match=r"^The service does not start: .*Permission denied"):
        deploy(ServiceConfig(), ACCESS, ADDRESS)


def test_an_unregistered_model_is_refused_before_anything_starts(tmp_path: Path) -> None:
    registry = registry_with(tmp_path, "digits")
    require_names(ServiceConfig(models=("digits",)), registry)
    require_names(ServiceConfig(), registry)
    with pytest.raises(UnknownNameError, match=r"'digitz'. Nearest: digits"):
        require_names(ServiceConfig(models=("digits", "digitz")), registry)


def test_an_engine_that_cannot_run_a_model_is_refused_before_anything_starts(
    tmp_path: Path,
) -> None:
    registry = registry_with(tmp_path, "digits")
    with model_server() as server:
        settings = registry.settings.model_copy(update={"hosted_models": server.host})
        fields = {"file": server.url, "name": "thirds", "labels": ("a", "b", "c")}
        options = {"mean": "0", "std": "255", "stretch": True, "scores": "logits"}
        package = import_hosted(ImportSpec.make({**fields, **options}), settings)
    registry.register(package, alias="production")
    require_names(ServiceConfig(models=("digits", "thirds"), engine="eager"), registry)
    for config in (ServiceConfig(engine="openvino"), ServiceConfig(precision="float32")):
        require_names(config.model_copy(update={"models": ("digits",)}), registry)
        with pytest.raises(InputError, match="'thirds' is hosted, and its server chooses"):
            require_names(config.model_copy(update={"models": ("digits", "thirds")}), registry)


def test_each_service_has_a_folder_that_only_its_owner_enters(tmp_path: Path) -> None:
    with private_folder() as one, private_folder() as other:
        assert one != other
        assert one.stat().st_mode & 0o777 == 0o700
        assert len(f"{one}/haproxy-4194304.sock.4194304.tmp") <= 107  # as paths of sockets may be
    assert not one.exists()
    (tmp_path / "file").touch()
    refused = pytest.raises(UserError, match="cannot be created")
    with refused, private_folder(str(tmp_path / "file")):
        pass


@pytest.mark.parametrize(
    ("host", "address", "loopback", "url"),
    [
        ("127.0.0.1", "127.0.0.1", True, "http://127.0.0.1:"),
        ("localhost", None, True, "http://localhost:"),
        ("::1", "::1", True, "http://[::1]:"),
        ("0.0.0.0", "0.0.0.0", False, "http://127.0.0.1:"),
        ("::", "::", False, "http://[::1]:"),
    ],
)
def test_the_service_listens_only_on_the_configured_address(
    host: str, address: str | None, loopback: bool, url: str
) -> None:
    place = ListenAddress(host, free_port(), free_port())
    with open_sockets(place) as doors:
        assert doors.grpc is not None
        for door, port in ((doors.http, place.port), (doors.grpc, place.grpc_port)):
            assert door.getsockname()[1] == port
            assert address in (None, door.getsockname()[0])
        assert doors.are_loopback is loopback
        assert place.url == f"{url}{place.port}"
        for family, peer in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family) as caller:
                reached = caller.connect_ex((peer, place.port)) == 0
            versions = {"0.0.0.0": "4", "::": "46", "::1": "6", "127.0.0.1": "4"}.get(host)
            assert versions is None or reached is (("6" if ":" in peer else "4") in versions)


def test_a_port_in_use_and_a_foreign_address_are_refused_in_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(InputError, match=f"Port {port} of 127.0.0.1 cannot be used"),
            open_sockets(ListenAddress("127.0.0.1", port, 0)),
        ):
            pass
    with (
        pytest.raises(InputError, match="--host"),
        open_sockets(ListenAddress("192.0.2.1", free_port(), 0)),
    ):
        pass
    with (
        pytest.raises(InputError, match="not an address"),
        open_sockets(ListenAddress("not a host", 1, 0)),
    ):
        pass


@pytest.mark.parametrize("address", ["9101", "127.0.0.1", "127.0.0.1:", ":9101", "::1:none"])
def test_an_address_of_metrics_without_a_port_is_refused_in_a_sentence(address: str) -> None:
    with (
        pytest.raises(InputError, match=r"--metrics-address .* not an address with a port"),
        open_sockets(ListenAddress("127.0.0.1", free_port(), 0, address)),
    ):
        pass
