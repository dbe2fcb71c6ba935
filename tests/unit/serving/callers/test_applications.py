"""Applications, their keys and pins, and the routes of models, on a real database."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from eagleray.core.environment import is_loopback_address
from eagleray.core.errors import InputError, UnknownNameError
from eagleray.database.store import OpenDatabase, open_database
from eagleray.serving.callers.admission import (
    ANONYMOUS,
    Access,
    Quotas,
    authenticate,
    determine_access,
)
from eagleray.serving.callers.applications import Applications, key_digest
from eagleray.serving.problems import FullError, NotAllowedError
from eagleray.serving.versions.routes import Routes
from eagleray.serving.versions.routing import Application, Callers, Role, Route, Snapshot, Via
from tests.support.models import settings_in

KEYED = Access(keyless=False, database="", last_change=0)
KEYLESS = Access(keyless=True, database="", last_change=0)


@pytest.fixture
def database(tmp_path: Path) -> OpenDatabase:
    return open_database(settings_in(tmp_path))


@pytest.fixture
def applications(database: OpenDatabase) -> Applications:
    return Applications(database, actor="tester")


def snapshot(applications: Applications) -> Snapshot:
    callers = applications.read()
    return Snapshot(
        aliases={},
        applications=callers.applications,
        keys=callers.keys,
        last_change=callers.last_change,
    )


def test_a_key_is_known_by_its_digest_alone(
    applications: Applications, database: OpenDatabase
) -> None:
    made = applications.create("shop", images_per_second=50)
    assert authenticate(KEYED, snapshot(applications), made.key, "192.0.2.1") == "shop"
    with database.session() as session:
        stored = str(session.execute(sa.text("select * from api_keys")).all())
    assert made.key not in stored
    assert key_digest(made.key) in stored
    assert applications.get("shop") == Application("shop", 50.0, {})


@pytest.mark.parametrize("key", [None, "", "er_wrong", "\udcff"])
def test_other_keys_are_refused(applications: Applications, key: str | None) -> None:
    applications.create("shop")
    with pytest.raises(NotAllowedError):
        authenticate(KEYED, snapshot(applications), key, "127.0.0.1")


def test_without_applications_only_this_machine_is_admitted() -> None:
    empty = Snapshot(aliases={})
    assert authenticate(KEYLESS, empty, None, "127.0.0.1") == ANONYMOUS
    assert authenticate(KEYLESS, empty, None, "::1") == ANONYMOUS
    for address in ("192.0.2.1", "::ffff:10.0.0.1", None, "testclient"):
        with pytest.raises(NotAllowedError, match="eagleray apps create NAME"):
            authenticate(KEYLESS, empty, None, address)


def test_a_rotated_key_ends_when_it_was_said_to(applications: Applications) -> None:
    first = applications.create("shop")
    second = applications.rotate("shop", keep_old=timedelta(hours=1))
    both = snapshot(applications)
    assert (
        authenticate(KEYED, both, first.key, None)
        == authenticate(KEYED, both, second.key, None)
        == "shop"
    )
    third = applications.rotate("shop")
    last = snapshot(applications)
    assert authenticate(KEYED, last, third.key, None) == "shop"
    for key in (first.key, second.key):
        with pytest.raises(NotAllowedError):
            authenticate(KEYED, last, key, None)
    now = datetime.now(UTC)
    assert [item.is_valid(now) for item in applications.keys("shop")] == [False, False, True]


def test_a_revoked_key_and_a_disabled_application_are_refused(applications: Applications) -> None:
    made = applications.create("shop")
    applications.disable("shop")
    with pytest.raises(NotAllowedError):
        authenticate(KEYED, snapshot(applications), made.key, None)
    applications.disable("shop", disabled=False)
    assert authenticate(KEYED, snapshot(applications), made.key, None) == "shop"
    applications.revoke("shop", applications.keys("shop")[0].prefix)
    with pytest.raises(NotAllowedError):
        authenticate(KEYED, snapshot(applications), made.key, None)
    assert [change.description for change in applications.changes("shop")][:3] == [
        "created",
        "disabled",
        "enabled",
    ]


def test_pins_come_and_go(applications: Applications) -> None:
    applications.create("shop")
    applications.pin("shop", "digits", "3")
    applications.pin("shop", "digits", "candidate")
    assert applications.get("shop").pins == {"digits": "candidate"}
    applications.unpin("shop", "digits")
    assert applications.get("shop").pins == {}
    applications.pin("shop", "digits", "3")
    applications.delete("shop")
    assert applications.read() == Callers({}, {}, last_change=6)
    assert applications.changes("shop")[-1].description == "deleted"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda book: book.create("shop"), "already"),
        (lambda book: book.create("a b"), "cannot name an application"),
        (lambda book: book.create("lab", images_per_second=0), "above 0"),
        (lambda book: book.pin("shopp", "digits", "1"), "Nearest: shop"),
        (lambda book: book.unpin("shop", "digits"), "No pin"),
        (lambda book: book.revoke("shop", "er_12345678"), "No key"),
        (lambda book: book.set_quota("nobody", 1), "No application"),
    ],
)
def test_mistakes_are_one_sentence(applications: Applications, call: object, words: str) -> None:
    applications.create("shop")
    with pytest.raises((InputError, UnknownNameError), match=words):
        call(applications)  # type: ignore[operator]


def test_routes_are_changed_field_by_field(database: OpenDatabase) -> None:
    routes = Routes(database, actor="tester")
    assert routes.get("digits") == Route()
    routes.set("digits", canary="5", canary_share=0.1)
    routes.set("digits", warm=True)
    assert routes.read() == {"digits": Route(canary="5", canary_share=0.1, warm=True)}
    with pytest.raises(InputError, match="from 0 to 1"):
        routes.set("digits", canary_share=10)
    role = Role("digits", Via.PINNED, "shop")
    routes.record_served(role, 3)
    routes.record_served(role, 4)
    assert routes.served() == {role: 4}


def test_a_quota_is_a_number_of_images_a_second() -> None:
    now = 0.0
    quotas = Quotas(share=0.5, clock=lambda: now)
    known = Snapshot(aliases={}, applications={"shop": Application("shop", 20.0)})
    for _ in range(10):
        quotas.take(known, "shop", 1)
    with pytest.raises(FullError) as full:
        quotas.take(known, "shop", 1)
    assert full.value.retry_after == pytest.approx(0.1)
    now = 0.5
    quotas.take(known, "shop", 5)
    with pytest.raises(FullError):
        quotas.take(known, "shop", 1)
    quotas.take(known, "", 1000)  # nobody has no quota


def test_more_than_a_seconds_worth_is_paid_for_by_waiting() -> None:
    now = 0.0
    quotas = Quotas(clock=lambda: now)
    known = Snapshot(aliases={}, applications={"shop": Application("shop", 10.0)})
    quotas.take(known, "shop", 30)
    with pytest.raises(FullError) as full:
        quotas.take(known, "shop", 1)
    assert full.value.retry_after == pytest.approx(2.1)


def test_access_is_determined_once_for_all_replicas(
    applications: Applications, database: OpenDatabase
) -> None:
    keyless = determine_access(database, host_is_loopback=True)
    assert keyless == Access(True, database.read_identity(), 0)
    assert Access(**json.loads(json.dumps(dataclasses.asdict(keyless)))) == keyless
    with pytest.raises(InputError, match="Other machines would reach the service"):
        determine_access(database, host_is_loopback=False)
    made = applications.create("shop")
    keyed = determine_access(database, host_is_loopback=False)
    assert not keyed.keyless
    applications.delete("shop")
    later = snapshot(applications)  # all that a replica that starts later sees
    for access in (keyless, keyed):
        for key in (None, made.key):
            with pytest.raises(NotAllowedError):
                authenticate(access, later, key, "127.0.0.1")
    anew = determine_access(database, host_is_loopback=True)
    assert authenticate(anew, later, None, "127.0.0.1") == ANONYMOUS


def test_an_ipv4_mapped_address_counts_as_the_ipv4_address() -> None:
    assert is_loopback_address("::ffff:127.0.0.1")
    assert not is_loopback_address("::ffff:192.0.2.1")
    assert not is_loopback_address("127.0.0.1.example.com")
