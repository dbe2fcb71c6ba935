"""Registers a trained model: tests it once, judges the run, and points an alias to the version."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from eagleray.data.encoding import encode_targets
from eagleray.evaluation.bootstrap import bootstrap
from eagleray.evaluation.job import model_facts
from eagleray.evaluation.leakage import Leakage
from eagleray.evaluation.predictions import ImagePredictions
from eagleray.evaluation.report import render_evaluation
from eagleray.evaluation.slices import choose_columns, slice_metrics
from eagleray.io import storage
from eagleray.registry.leakage import find_leakage
from eagleray.registry.registry import ModelVersion
from eagleray.registry.tracking import TrackedRun
from eagleray.training.custom import image_losses
from eagleray.training.monitor import Monitor
from eagleray.training.plan import TrainPlan
from eagleray.training.prepare import TrainJob
from eagleray.training.registration.aliases import AliasDecision, move_alias
from eagleray.training.registration.packaging import FinishedModel, finish_again, finish_model
from eagleray.training.registration.rivals import Contender
from eagleray.training.registration.verdict import comparison_monitor, reasons_not_learned
from eagleray.training.result import TrainResult
from eagleray.training.runs import Run

__all__ = ["RegisteredModel", "RunSummary", "register_model"]


_MAX_GUESSES = 10_000  # images: of a thousand classes, a million would take gigabytes


@dataclass(frozen=True)
class RegisteredModel:
    """A trained model that is registered.

    Attributes:
        version: Its version, with its aliases.
        tested: The model with its evaluation on the test split.
        did_not_learn: Sentences that say why the run did not learn; none if it did.
        leakage: The test images that the model or one of its ancestors learned from.
        alias: Whether an alias moved to the version, and why.
    """

    version: ModelVersion
    tested: FinishedModel
    did_not_learn: tuple[str, ...]
    leakage: Leakage
    alias: AliasDecision

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences for people on what is wrong with the model."""
        not_learned = ("The run did not learn.", *self.did_not_learn) if self.did_not_learn else ()
        leakage = (self.leakage.sentence,) if self.leakage else ()
        stays = () if self.alias.moved else (self.alias.reason,)
        fit = self.tested.package.task.fit_warnings
        return (" ".join(not_learned),) * bool(not_learned) + leakage + fit + stays

    def as_json(self) -> dict[str, Any]:
        """Return the version and its test metrics as JSON values."""
        return {
            "model": self.version.reference,
            "aliases": list(self.version.aliases),
            "alias": self.alias.as_json(),
            "did_not_learn": list(self.did_not_learn),
            "package_digest": self.version.digest,
            "positive": self.tested.package.task.positive,
            "test": self.tested.evaluation.metrics,
            "test_images": self.tested.evaluation.num_images,
            "test_images_failed": self.tested.evaluation.num_failed,
            "test_images_leaked": len(self.leakage.rows),
        }


@dataclass(frozen=True)
class RunSummary:
    """What the summaries of a training and of a tuning share.

    Attributes:
        run: The run.
        registered: Its registered model.
        warnings: Sentences on what the user should know.
        notes: Sentences on how the data were read.
    """

    run: Run
    registered: RegisteredModel
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def version(self) -> ModelVersion:
        """The registered version."""
        return self.registered.version

    @property
    def tested(self) -> FinishedModel:
        """The model with its evaluation on the test split."""
        return self.registered.tested

    def as_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return {
            **self.registered.as_json(),
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "run": self.run.name,
            "folder": self.run.folder,
            "mlflow_run": self.version.run_id,
        }


def register_model(
    job: TrainJob, plan: TrainPlan, tracked: TrackedRun, run: Run, result: TrainResult
) -> RegisteredModel:
    """Test the model, register it as a version, judge the run, and write the page of the test.

    A resumed run that has registered a version does not register a second one.

    Args:
        job: Job of the run.
        plan: Plan of the run, whose network has the best weights.
        tracked: MLflow run.
        run: Folder of the run.
        result: Result of the training.
    """
    registry, cache = job.registry, job.settings.cache_folder
    version = registry.version_of_run(tracked, job.spec.name)
    if version is None:
        tested = finish_model(plan, plan.module, cache_folder=cache, mlflow_run=tracked.run_id)
        version = registry.register(tested.package, run=tracked)
    else:
        tested = finish_again(plan, registry.load(version), cache_folder=cache)
    leakage = find_leakage(registry, version, plan.split.test)
    tested = _with_evidence(tested, run, leakage)
    registry.record_evaluation(version, tested.record, ImagePredictions.of(tested.evaluation))
    tracked.log_metrics(
        {f"test_{name}": value for name, value in tested.evaluation.headline.items()},
        step=job.spec.epochs,
    )
    monitor = plan.monitor
    judge = comparison_monitor(monitor, tested.evaluation.task, tested.evaluation.metrics)
    contender = Contender(job, plan, tested, judge, leakage)
    reasons = _reasons(contender, result, monitor)
    version = registry.record_verdict(version, reasons)
    version, decision = move_alias(contender, version, reasons)
    registered = RegisteredModel(version, tested, reasons, leakage, decision)
    storage.put_atomic(run.page("evaluation"), _evaluation_page(registered, run))
    return registered


def _with_evidence(tested: FinishedModel, run: Run, leakage: Leakage) -> FinishedModel:
    """Complete the record of the evaluation: how to repeat it, and what it is worth."""
    changes = {
        "arguments": (storage.absolute(run.split_file), "--split", "test"),
        "num_leaked": len(leakage.rows),
        "leakage": leakage.sentence,
    }
    return dataclasses.replace(tested, record=tested.record.model_copy(update=changes))


def _reasons(contender: Contender, result: TrainResult, monitor: Monitor) -> tuple[str, ...]:
    """Return why the run did not learn; none if it did."""
    plan = contender.plan
    train = plan.split.train
    targets = encode_targets(plan.task, train)
    losses = image_losses(plan.spec, plan.task, train.labels, torch.device("cpu"))
    some = targets[:: -(-len(targets) // _MAX_GUESSES)]
    uninformed = plan.task.uninformed_outputs(len(some))
    return reasons_not_learned(
        result,
        contender.tested.evaluation,
        monitor,
        targets,
        guessing=None if uninformed is None else float(losses(uninformed, some).mean()),
        # A pruned model may be a little worse than its parent, which is larger.
        parent=None if plan.spec.prune else contender.compare_with_parent(),
        # With a teacher, the training loss has a share that guessing lacks.
        loss="train_loss" if plan.teacher is None else "validation_loss",
    )


def _evaluation_page(registered: RegisteredModel, run: Run) -> bytes:
    tested, version = registered.tested, registered.version
    evaluation = tested.evaluation
    task, outputs, targets = evaluation.task, evaluation.outputs, evaluation.targets
    return render_evaluation(
        evaluation,
        {
            "model": f"{version.reference} (package {version.digest[:12]})",
            **model_facts(tested.package),
            "data": tested.record.data,
            "data digest": tested.record.data_digest,
            **task.facts(outputs, targets),
            "run": run.name,
        },
        model_name=version.reference,
        intervals=bootstrap(task, outputs, targets),
        slices=slice_metrics(evaluation, choose_columns(evaluation.images)),
        warnings=registered.warnings,
    )
