"""The structure of the code: directions of imports, public names, and complete listings."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import eagleray
from tests.module_list import PACKAGES

ROOT = Path(__file__).parents[2]
PROGRAMS = {"eagleray.jobs", "eagleray.serve"}
ROOMS = {"lib": set(), "jobs": {"eagleray.jobs"}, "serve": {"eagleray.serve"}}
"""The source folders, and which of the programs each may import."""
OURS = {"eagleray", "tests", "cluster"}


def python_files(folder: str) -> list[Path]:
    """Every module of a folder; of `lib` without the programs that are linked into it."""
    return sorted((ROOT / folder).rglob("*.py"))


def imported_modules(file: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


def imported_roots(file: Path) -> set[str]:
    return {module.split(".")[0] for module in imported_modules(file)}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(room: str) -> None:
    for file in python_files(room):
        assert imported_roots(file) & OURS <= {"eagleray"}, file
        programs = {".".join(module.split(".")[:2]) for module in imported_modules(file)} & PROGRAMS
        assert programs <= ROOMS[room], file


def module_name(file: Path, room: str) -> str:
    """Return the name under which a module of a source folder is imported."""
    parts = file.relative_to(ROOT / room).with_suffix("").parts
    return ".".join(parts if room == "lib" else ("eagleray", room, *parts))


def test_no_modules_import_each_other_in_a_circle() -> None:
    files = {module_name(file, room): file for room in ROOMS for file in python_files(room)}
    imports = {name: imported_modules(file) & files.keys() for name, file in files.items()}
    graphlib.TopologicalSorter(imports).prepare()  # names the circle if there is one


def test_packages_import_downwards_only() -> None:
    package = ROOT / "lib/eagleray"
    folders = {file.parent.name for file in package.glob("*/__init__.py")}
    assert folders - {"jobs", "serve"} == set(PACKAGES)
    for rank, name in enumerate(PACKAGES):
        for file in python_files(f"lib/eagleray/{name}"):
            imported = {
                module.split(".")[1]
                for module in imported_modules(file)
                if module.startswith("eagleray.") and module.split(".")[1] in PACKAGES
            }
            assert imported <= set(PACKAGES[: rank + 1]), file


def test_below_the_command_line_nothing_imports_it() -> None:
    for file in python_files("lib/eagleray"):
        if "cli" not in file.parts and file.name != "__main__.py":
            assert not re.search(r"eagleray\.cli\b", file.read_text()), file


RAY_FREE = ("imaging", "io", "tasks", "models", "inference", "registry", "serving", "client")


@pytest.mark.parametrize("package", RAY_FREE)
def test_models_and_the_service_do_not_import_ray(package: str) -> None:
    for file in python_files(f"lib/eagleray/{package}"):
        assert "ray" not in imported_roots(file), file


def task_checks(file: Path) -> list[int]:
    """Return the lines where a module asks which task it has, by its class or by its name."""
    tree = ast.parse(file.read_text())
    tasks = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("eagleray.tasks")
        for alias in node.names
    } - {"Failure", "Outcome", "Prediction"}
    names = {"binary", "multiclass", "multilabel", "regression"}
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            used = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
            if node.func.id in ("isinstance", "issubclass") and used & tasks:
                lines.append(node.lineno)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            sides += [one for side in sides for one in getattr(side, "elts", ())]
            if names & {one.value for one in sides if isinstance(one, ast.Constant)}:
                lines.append(node.lineno)
    return lines


def test_only_tasks_check_which_task_it_is() -> None:
    files = [file for folder in ROOMS for file in python_files(folder)]
    found = {
        str(file.relative_to(ROOT)): lines
        for file in files
        if "tasks" not in file.parts and (lines := task_checks(file))
    }
    assert found == {}


TEST_IMPORTS = {
    **{
        folder: {"support", "module_list"}
        for folder in ("unit", "integration", "e2e", "support", "cluster")
    },
    "chaos": {"support", "chaos"},
    "bench": {"support", "bench", "portable"},
}
"""The folders of `tests`, and what of `tests` each may import."""


@pytest.mark.parametrize("folder", TEST_IMPORTS)
def test_tests_share_code_through_their_support_folder(folder: str) -> None:
    for file in python_files(f"tests/{folder}"):
        imported = {
            module.split(".")[1] for module in imported_modules(file) if module.startswith("tests.")
        }
        assert imported <= TEST_IMPORTS[folder], file


def test_git_ignores_nothing_under_lib() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this tree is not a git checkout")
    names = [str(file.relative_to(ROOT)) for file in python_files("lib")]
    names += ["lib/eagleray/anything/models/data.py", "lib/eagleray/build/lib/env.py"]
    answer = subprocess.run(
        ["git", "check-ignore", *names], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.stdout == ""


def test_lib_is_a_source_root_and_not_a_package() -> None:
    assert not (ROOT / "lib" / "__init__.py").exists()
    assert [path.name for path in (ROOT / "lib").iterdir()] == ["eagleray"]


def test_the_public_surface_is_this_and_loads() -> None:
    assert eagleray.__all__ == sorted(eagleray.__all__)
    for name in eagleray.__all__:
        assert getattr(eagleray, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = eagleray.nothing


def test_importing_eagleray_starts_nothing_heavy() -> None:
    code = (
        "import sys, eagleray, eagleray.cli.main; "
        "print([name for name in ('torch', 'ray', 'mlflow', 'cv2') if name in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_no_integration_test_imports_ray_before_its_authentication_is_set() -> None:
    """Ray reads that when it is imported, and pytest imports all tests before it runs any."""
    folder = ROOT / "tests/integration"
    names = [f"tests.integration.{file.stem}" for file in sorted(folder.glob("test_*.py"))]
    code = f"import importlib, sys; [importlib.import_module(n) for n in {names}]; "
    code += "print('ray' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert answer.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("file", "count"), [("requirements.lock", 50), ("tests/cluster/requirements.txt", 3)]
)
def test_locks_have_hashes_and_no_addresses(file: str, count: int) -> None:
    text = (ROOT / file).read_text()
    packages = re.findall(r"^[a-z0-9][a-z0-9._-]*(?:\[[a-z,]+\])?==", text, re.MULTILINE)
    assert len(packages) > count
    assert "://" not in text
    blocks = re.split(r"\n(?=[a-z0-9])", text)
    assert all("--hash=sha256:" in block for block in blocks)


@pytest.mark.parametrize("file", python_files("jobs"), ids=lambda file: file.name)
def test_every_job_opens_with_its_command_line(file: Path) -> None:
    docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
    if file.name == "__init__.py":
        return
    assert f"python -m eagleray.jobs.{file.stem}" in docstring
    assert f"eagleray {file.stem}" in docstring


def private_ray_interfaces(file: Path) -> list[str]:
    """What a module uses of Ray that its public interface does not have."""
    tree = ast.parse(file.read_text())
    ray = [module for module in imported_modules(file) if module.split(".")[0] == "ray"]
    if not ray:
        return []
    found = [name for name in ray if any(re.match("_|.*internal", x) for x in name.split("."))]
    names = {module.split(".")[-1] for module in ray}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls", "os")
            if ("internal" in node.attr or node.attr == "DataContext") or (
                re.match("_[^_]", node.attr) and not own
            ):
                found.append(node.attr)
        elif isinstance(node, ast.keyword) and (node.arg or "").startswith("_"):
            found.append(str(node.arg))
        elif isinstance(node, ast.ClassDef) and names & {ast.unparse(base) for base in node.bases}:
            methods = [item.name for item in node.body if isinstance(item, ast.FunctionDef)]
            found += [name for name in methods if re.match("_[^_]", name)]
    return found


def test_one_module_uses_the_private_interfaces_of_ray() -> None:
    # The second one needs boto3, and is imported by `ray up` only.
    known = [ROOT / "lib/eagleray/core" / name for name in ("ray_private.py", "ray_nodes.py")]
    assert all(map(private_ray_interfaces, known))
    for folder in ("lib", "jobs", "serve"):
        for file in python_files(folder):
            assert file in known or not private_ray_interfaces(file), file
