"""Which version serves a request: requested, pinned, canary, default."""

from __future__ import annotations

import pytest

from eagleray.core.errors import UnknownNameError
from eagleray.serving.versions.routing import (
    Application,
    Role,
    Route,
    Snapshot,
    Via,
    choose,
    shadow_of,
)

SNAPSHOT = Snapshot(
    aliases={"digits": {"production": 3, "candidate": 5}, "new": {}},
    routes={"digits": Route(canary="candidate", canary_share=0.25, shadow="7", shadow_share=0.5)},
    applications={
        "shop": Application("shop", pins={"digits": "2"}),
        "lab": Application("lab", pins={"digits": "candidate"}),
        "web": Application("web"),
    },
)


@pytest.mark.parametrize(
    ("application", "requested", "version", "via"),
    [
        ("shop", None, 2, Via.PINNED),
        ("lab", None, 5, Via.PINNED),
        ("shop", "1", 1, Via.REQUESTED),
        ("shop", "candidate", 5, Via.REQUESTED),
    ],
)
def test_a_requested_version_takes_precedence_over_a_pin(
    application: str, requested: str | None, version: int, via: Via
) -> None:
    choice = choose(SNAPSHOT, "digits", application=application, version=requested, request_id="x")
    assert (choice.version, choice.role.via) == (version, via)


@pytest.mark.parametrize("application", ["web", ""])
def test_a_canary_gets_its_share_and_the_same_requests_every_time(application: str) -> None:
    def versions() -> list[int]:
        return [
            choose(SNAPSHOT, "digits", application=application, request_id=f"r{number}").version
            for number in range(10_000)
        ]

    first = versions()
    assert first == versions()
    assert set(first) == {3, 5}
    assert abs(first.count(5) - 2500) < 4 * (10_000 * 0.25 * 0.75) ** 0.5


def test_a_shadow_sees_its_share_independently_of_the_canary() -> None:
    ids = [f"r{number}" for number in range(4000)]
    seen = {item for item in ids if shadow_of(SNAPSHOT, "digits", request_id=item)}
    canary = {item for item in ids if choose(SNAPSHOT, "digits", request_id=item).version == 5}
    assert abs(len(seen) / 4000 - 0.5) < 0.04
    assert abs(len(seen & canary) / len(canary) - 0.5) < 0.08
    assert shadow_of(SNAPSHOT, "new", request_id="x") is None


@pytest.mark.parametrize(
    ("model", "requested", "error", "words"),
    [
        ("digit", None, UnknownNameError, "Nearest: digits"),
        ("new", None, UnknownNameError, "'production'. It has none yet; set this one, or name a"),
        ("digits", "candidat", UnknownNameError, "Nearest: candidate"),
    ],
)
def test_an_invalid_choice_is_refused_in_a_sentence(
    model: str, requested: str | None, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        choose(SNAPSHOT, model, version=requested)


def test_every_standing_role_has_its_target() -> None:
    assert SNAPSHOT.roles["digits"] == {
        Role("digits", Via.DEFAULT): "production",
        Role("digits", Via.CANARY): "candidate",
        Role("digits", Via.SHADOW): "7",
        Role("digits", Via.PINNED, "shop"): "2",
        Role("digits", Via.PINNED, "lab"): "candidate",
    }
    assert SNAPSHOT.roles["new"] == {Role("new", Via.DEFAULT): "production"}
    assert SNAPSHOT.desired_versions == {
        Role("digits", Via.DEFAULT): 3,
        Role("digits", Via.CANARY): 5,
        Role("digits", Via.SHADOW): 7,
        Role("digits", Via.PINNED, "shop"): 2,
        Role("digits", Via.PINNED, "lab"): 5,
    }


def test_cached_properties_do_not_change_the_equality_of_snapshots() -> None:
    one, other = Snapshot(aliases={"new": {}}), Snapshot(aliases={"new": {}})
    assert one.roles is one.roles
    assert one == other


def test_a_pin_on_a_model_that_is_gone_has_no_role() -> None:
    applications = {"shop": Application("shop", pins={"gone": "2"})}
    snapshot = Snapshot(aliases={"new": {}}, applications=applications)
    assert snapshot.roles == {"new": {Role("new", Via.DEFAULT): "production"}}
    assert snapshot.desired_versions == {}
