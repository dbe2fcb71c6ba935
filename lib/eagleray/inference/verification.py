"""Everything that can be said of a package, check by check, also where one of them fails.

    for check in verify_package("packages/digits").checks:
        print(check.name, check.passed, check.detail)

A check that needs what an earlier one did not find is noted as not made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from eagleray.core.errors import UserError
from eagleray.models.architectures import check_fits
from eagleray.models.package import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    ModelManifest,
    ModelPackage,
    is_package_file,
    manifest_digest,
    parse_manifest,
    require_digest,
    require_golden_fits,
    require_listed,
)
from eagleray.models.package_files import PackageFiles, open_package

if TYPE_CHECKING:  # which takes seconds to import, and not all checks come so far
    from eagleray.inference.predictor import GoldenCheck

__all__ = ["Check", "VerificationReport", "verify_loaded", "verify_package"]

_FILES, _DIGEST, _LISTED = "files", "digest", "listed files"
_WEIGHTS, _INPUT, _GOLDEN, _OUTPUTS = "network", "input size", "golden images", "outputs"


@dataclass
class Check:
    """One check of a package, made in its `with` block: a `UserError` in there is its fault.

    Attributes:
        name: What was checked.
        passed: None where it was not made.
        detail: What was found, the fault, or why it was not made.
    """

    name: str
    passed: bool | None = True
    detail: str = "ok"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, UserError):
            return False
        self.passed, self.detail = False, str(error)
        return True

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return {"check": self.name, "passed": self.passed, "detail": self.detail}


@dataclass
class VerificationReport:
    """All checks of a package.

    Attributes:
        checks: In the order in which they were made.
        digest: Of the package, where its manifest is valid.
        golden: How the package did on its golden images, where it came so far.
    """

    checks: list[Check] = field(default_factory=list)
    digest: str | None = None
    golden: GoldenCheck | None = None

    @property
    def passed(self) -> bool:
        """Whether every check was made and passed."""
        return all(check.passed for check in self.checks)

    @property
    def faults(self) -> list[str]:
        """What is wrong."""
        return [check.detail for check in self.checks if check.passed is False]

    def check(self, name: str) -> Check:
        """Begin a check."""
        self.checks.append(Check(name))
        return self.checks[-1]

    def skip(self, needed: str, *names: str) -> None:
        """Note checks that cannot be made for want of something."""
        self.checks += [Check(name, None, f"not checked, as it needs {needed}") for name in names]

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        golden = self.golden
        return {
            "digest": self.digest,
            "passed": self.passed,
            "golden_images": golden.num_images if golden else None,
            "max_difference": golden.max_difference if golden else None,
            "tolerance": golden.tolerance if golden else None,
            "checks": [check.as_json() for check in self.checks],
        }


def verify_package(folder: str, *, expected_digest: str | None = None) -> VerificationReport:
    """Check a package in a folder or under a URI, on this machine.

    Args:
        folder: Where the package is.
        expected_digest: What its digest must be, when somebody recorded it.

    Raises:
        PackageError: There is no folder.
        InputError: A remote storage does not answer.
    """
    report = VerificationReport()
    with open_package(folder) as opened:
        manifest = _check_manifest(report, folder, opened, expected_digest)
        names = None
        with report.check(_FILES) as check:
            names = opened.names()
            check.detail = f"{len(names)}"
        if manifest is None:
            report.skip(f"a valid {MANIFEST_FILE}", _LISTED, _GOLDEN, _WEIGHTS, _INPUT, _OUTPUTS)
            return report
        if names is None:
            report.skip("a list of the files", _LISTED)
        else:
            with report.check(_LISTED) as check:
                require_listed(folder, names, manifest)
        golden = _check_golden(report, folder, opened, manifest)
        weights = _check_weights(report, opened, manifest)
        fits = _check_input(report, manifest)
    if golden is None or weights is None or not fits:
        report.skip("intact files that fit each other", _OUTPUTS)
        return report
    files = MappingProxyType({**golden, WEIGHTS_FILE: weights})
    _check_outputs(report, ModelPackage(manifest, files))
    return report


def verify_loaded(package: ModelPackage) -> VerificationReport:
    """Check a package that is in memory, such as one that was just made."""
    report = VerificationReport(digest=package.digest)
    with report.check(_WEIGHTS):
        package.require_weights()
    _check_input(report, package.manifest)
    if report.passed:
        _check_outputs(report, package)
    else:
        report.skip("weights and a network that fit", _OUTPUTS)
    return report


def _check_manifest(
    report: VerificationReport, folder: str, opened: PackageFiles, expected: str | None
) -> ModelManifest | None:
    manifest = None
    with report.check(MANIFEST_FILE) as check:
        manifest = parse_manifest(opened.read(MANIFEST_FILE), f"{folder}: {MANIFEST_FILE}")
        labels = f" of {len(manifest.task.labels):,} labels" * bool(manifest.task.labels)
        check.detail = (
            f"{manifest.name}: {manifest.task.name}{labels}, {manifest.architecture.name}"
        )
    if manifest is not None:
        report.digest = manifest_digest(manifest)
        if expected is not None:
            with report.check(_DIGEST) as check:
                require_digest(folder, report.digest, expected)
                check.detail = "as it was registered"
    return manifest


def _check_golden(
    report: VerificationReport, folder: str, opened: PackageFiles, manifest: ModelManifest
) -> dict[str, bytes] | None:
    """Return all files but the weights; None unless all are what they should be."""
    files: dict[str, bytes] = {}
    listed = [name for name in manifest.files if name != WEIGHTS_FILE and is_package_file(name)]
    for name in listed:
        with report.check(name) as check:
            files[name] = opened.read(name, digest=manifest.files[name])
            check.detail = f"{len(files[name]):,} bytes with the digest that is listed"
    if len(files) < len(listed):
        report.skip("intact files", _GOLDEN)
        return None
    with report.check(_GOLDEN) as check:
        require_golden_fits(folder, manifest, files)
        check.detail = f"{sum(name != GOLDEN_FILE for name in files)}, described for this task"
    return files if check.passed else None


def _check_weights(
    report: VerificationReport, opened: PackageFiles, manifest: ModelManifest
) -> bytes | None:
    """Return the weights; None unless they are those that are listed, and those of the network.

    They are compared with their network by their header first, so a package of a stranger costs no
    more memory than an honest one of that network.
    """
    with report.check(_WEIGHTS) as check:
        opened.check_weights(manifest.architecture)
        check.detail = f"the weights are those of {manifest.architecture.name}"
    digest = manifest.files.get(WEIGHTS_FILE)
    if not check.passed or digest is None:
        report.skip("weights that are listed and fit the network", WEIGHTS_FILE)
        return None
    content = None
    with report.check(WEIGHTS_FILE) as check:
        content = opened.read_weights(manifest.architecture, digest=digest)
        check.detail = f"{len(content):,} bytes with the digest that is listed"
    return content


def _check_input(report: VerificationReport, manifest: ModelManifest) -> bool | None:
    """Check that the network takes the images of the contract."""
    height, width = manifest.contract.size
    with report.check(_INPUT) as check:
        check_fits(manifest.architecture, height, width)
        check.detail = f"the network takes {height} x {width} pixels"
    return check.passed


def _check_outputs(report: VerificationReport, package: ModelPackage) -> None:
    """Predict the golden images on this machine."""
    from eagleray.inference.predictor import Predictor

    with report.check(_OUTPUTS) as check:
        golden = Predictor(package, compile_mode="never").require_healthy()
        report.golden = golden
        check.detail = (
            f"those of {golden.num_images} golden images differ by {golden.max_difference:.2g} "
            f"at most ({golden.tolerance:.2g} is allowed)"
            if golden.num_images
            else "there are no golden images to compare"
        )
