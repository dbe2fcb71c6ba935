"""Verifies a model package check by check, and continues after a failed check.

    for check in verify_package("packages/digits").checks:
        print(check.name, check.passed, check.detail)

A check that depends on a failed one is reported as skipped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from eagleray.core.errors import UserError
from eagleray.models.building import check_fits
from eagleray.models.outliers import parse_outliers
from eagleray.models.package import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    OUTLIERS_FILE,
    ModelManifest,
    ModelPackage,
    is_package_file,
    manifest_digest,
    parse_manifest,
    read_network,
    require_digest,
    require_golden_fits,
    require_listed,
)
from eagleray.models.package_files import PackageFiles, open_package

if TYPE_CHECKING:  # takes seconds to import, and not every verification needs it
    from eagleray.inference.health import GoldenCheck

__all__ = ["Check", "VerificationReport", "verify_loaded", "verify_package"]

_FILES, _DIGEST, _LISTED = "files", "digest", "listed files"
_OUTLIERS = "outlier statistics"
_WEIGHTS, _INPUT, _GOLDEN, _OUTPUTS = "network", "input size", "golden images", "outputs"


@dataclass
class Check:
    """One check of a package, as a context manager: a `UserError` in the block fails the check.

    Attributes:
        name: Name of the check.
        passed: Whether the check passed; None if it was skipped.
        detail: The result, the fault, or why the check was skipped.
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
        """Return the check as JSON for scripts."""
        return {"check": self.name, "passed": self.passed, "detail": self.detail}


@dataclass
class VerificationReport:
    """All checks of a package.

    Attributes:
        checks: The checks, in order.
        digest: Digest of the package, if its manifest is valid.
        golden: Result of the golden images, if they were predicted.
    """

    checks: list[Check] = field(default_factory=list)
    digest: str | None = None
    golden: GoldenCheck | None = None

    @property
    def passed(self) -> bool:
        """Whether all checks passed."""
        return all(check.passed for check in self.checks)

    @property
    def faults(self) -> list[str]:
        """Details of the failed checks."""
        return [check.detail for check in self.checks if check.passed is False]

    def check(self, name: str) -> Check:
        """Add a check."""
        self.checks.append(Check(name))
        return self.checks[-1]

    def skip(self, needed: str, *names: str) -> None:
        """Add checks as skipped, because something that they need is missing."""
        self.checks += [Check(name, None, f"not checked, as it needs {needed}") for name in names]

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON for scripts."""
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
        folder: The package's location.
        expected_digest: The digest that was recorded for the package, if any.

    Raises:
        PackageError: If there is no folder.
        InputError: If a remote storage does not answer.
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
    files = MappingProxyType({**golden, manifest.network_file: weights})
    _check_outputs(report, ModelPackage(manifest, files))
    return report


def verify_loaded(package: ModelPackage) -> VerificationReport:
    """Check a package that is in memory."""
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
    """Return all files but the weights; None if one of them is missing or altered."""
    files: dict[str, bytes] = {}
    listed = [
        name for name in manifest.files if name != manifest.network_file and is_package_file(name)
    ]
    for name in listed:
        with report.check(name) as check:
            files[name] = opened.read(name, digest=manifest.files[name])
            check.detail = f"{len(files[name]):,} bytes, as listed"
    if OUTLIERS_FILE in files:
        with report.check(_OUTLIERS) as check:
            parse_outliers(files[OUTLIERS_FILE], f"{folder}: {OUTLIERS_FILE}")
        if not check.passed:
            return None
    if len(files) < len(listed):
        report.skip("intact files", _GOLDEN)
        return None
    with report.check(_GOLDEN) as check:
        require_golden_fits(folder, manifest, files)
        check.detail = f"{len({*files} - {GOLDEN_FILE, OUTLIERS_FILE})}, described for this task"
    return files if check.passed else None


def _check_weights(
    report: VerificationReport, opened: PackageFiles, manifest: ModelManifest
) -> bytes | None:
    """Return the weights; None if they are altered or do not fit the network.

    Their header is compared with the network first, so that a hostile package takes no more memory
    than a valid one.
    """
    file = manifest.network_file
    with report.check(_WEIGHTS) as check:
        if manifest.imported is not None:
            check.detail = "a graph of another program"
        elif manifest.hosted is not None:
            check.detail = f"none: {manifest.hosted.url} has them"
        elif manifest.quantization is not None:
            check.detail = (
                f"a graph of {manifest.architecture.name} in {manifest.quantization.precision}"
            )
        else:
            opened.check_weights(manifest.architecture)
            check.detail = f"the weights are those of {manifest.architecture.name}"
    if not check.passed or file not in manifest.files:
        report.skip("weights that are listed and fit the network", file)
        return None
    content = None
    with report.check(file) as check:
        content = read_network(opened, manifest)
        check.detail = f"{len(content):,} bytes, as listed"
    return content


def _check_input(report: VerificationReport, manifest: ModelManifest) -> bool | None:
    """Check that the network takes the images of the contract."""
    height, width = manifest.contract.size
    with report.check(_INPUT) as check:
        if not manifest.is_black_box:  # their inputs were compared before
            check_fits(manifest.architecture, height, width, task=manifest.task)
        check.detail = f"the network takes {height} x {width} pixels"
    return check.passed


def _check_outputs(report: VerificationReport, package: ModelPackage) -> None:
    """Predict the golden images on this machine."""
    from eagleray.inference.predictor import Predictor

    with report.check(_OUTPUTS) as check:
        golden = Predictor(package).require_healthy()
        report.golden = golden
        check.detail = (
            f"those of {golden.num_images} golden images differ by {golden.max_difference:.2g} "
            f"at most ({golden.tolerance:.2g} is allowed)"
            if golden.num_images
            else "there are no golden images to compare"
        )
