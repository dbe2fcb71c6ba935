"""Roles of applications for models: what they allow, and how an operator grants them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from eagleray.cli.main import app
from eagleray.core.errors import ExitCode, InputError, UnknownNameError
from eagleray.core.settings import read_settings
from eagleray.database.store import OpenDatabase, open_database
from eagleray.serving.callers.applications import Applications
from eagleray.serving.callers.roles import Grant, Role, Roles
from eagleray.serving.problems import ForbiddenError
from tests.support.models import settings_in


@pytest.fixture
def database(tmp_path: Path) -> OpenDatabase:
    database = open_database(settings_in(tmp_path))
    Applications(database, actor="tester").create("lab")
    return database


@pytest.fixture
def roles(database: OpenDatabase) -> Roles:
    return Roles(database, actor="tester")


def may(roles: Roles, role: Role, model: str, application: str = "lab") -> bool:
    try:
        roles.require(application, [(role, model)])
    except ForbiddenError:
        return False
    return True


def test_a_role_includes_those_before_it_for_models_of_its_pattern(roles: Roles) -> None:
    assert not may(roles, Role.EVALUATE, "flowers")
    roles.grant("lab", Role.TRAIN, "flower*")
    assert may(roles, Role.EVALUATE, "flowers")
    assert may(roles, Role.TRAIN, "flowers-small")
    assert not may(roles, Role.PROMOTE, "flowers")
    assert not may(roles, Role.TRAIN, "Flowers")
    assert not may(roles, Role.TRAIN, "my-flowers")
    assert not may(roles, Role.TRAIN, "flowers", application="")
    roles.grant("lab", Role.PROMOTE, "flowers")
    assert may(roles, Role.PROMOTE, "flowers")
    assert not may(roles, Role.PROMOTE, "flowers-small")


def test_a_role_is_replaced_and_withdrawn_on_the_record(
    roles: Roles, database: OpenDatabase
) -> None:
    roles.grant("lab", Role.PROMOTE, "*")
    roles.grant("lab", Role.EVALUATE, "*")
    assert roles.of("lab") == [Grant(Role.EVALUATE, "*")]
    roles.withdraw("lab", "*")
    assert not may(roles, Role.EVALUATE, "flowers")
    with pytest.raises(UnknownNameError, match="No role of application 'lab' for"):
        roles.withdraw("lab", "*")
    changes = [one.description for one in Applications(database, actor="").changes("lab")]
    assert changes[1:] == ["may promote *", "may evaluate *", "may no longer evaluate *"]


def test_an_application_that_is_deleted_leaves_no_role(
    roles: Roles, database: OpenDatabase
) -> None:
    roles.grant("lab", Role.PROMOTE, "*")
    applications = Applications(database, actor="tester")
    applications.delete("lab")
    applications.create("lab")
    assert roles.of("lab") == []


@pytest.mark.parametrize("models", ["", "a/b", "[a-z]*", "é", "x" * 129])
def test_a_pattern_that_names_no_models_is_refused(roles: Roles, models: str) -> None:
    with pytest.raises(InputError, match="neither the name of a model nor a pattern"):
        roles.grant("lab", Role.TRAIN, models)


def apps(*words: str) -> Result:
    return CliRunner().invoke(app, ["apps", *words])


def test_an_operator_grants_roles_and_priorities() -> None:
    database = open_database(read_settings())
    Applications(database, actor="tester").create("lab")
    assert apps("grant", "lab", "train", "flowers").exit_code == 0
    assert apps("priority", "lab", "5").exit_code == 0
    shown = json.loads(apps("show", "lab", "--json").output)
    assert (shown["roles"], shown["max_priority"]) == ({"flowers": "train"}, 5)
    assert apps("withdraw", "lab", "flowers").exit_code == 0
    assert json.loads(apps("show", "lab", "--json").output)["roles"] == {}
    unknown = apps("grant", "lab", "tran", "flowers")
    assert unknown.exit_code == ExitCode.USER
    assert "Nearest: train" in " ".join(unknown.output.split())
    assert apps("grant", "nobody", "train", "flowers").exit_code == ExitCode.USER
