"""Try many specifications on one split, stop the poor ones early, and keep the best one's weights.

    search space -> Optuna suggests -> a trial trains alone -> ASHA stops or lets go on -> ranking

A trial is one process with a share of the cores, or a GPU. The first one is the default, and is
never stopped, so that what a search has gained is measured and not believed. The test part plays
no role here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from eagleray.core.errors import InputError, JobFailedError
from eagleray.core.ray_session import Cluster
from eagleray.core.settings import Settings
from eagleray.data.labelled import LabelledImages
from eagleray.data.split import Split
from eagleray.io import storage
from eagleray.tasks import Task
from eagleray.training.distributed import single_process
from eagleray.training.events import EpochCompleted, LossNotFinite, TrainEvent
from eagleray.training.launch import describe_stop, make_worker_input, uses_gpu
from eagleray.training.plan import TrainPlan, plan_network
from eagleray.training.search_space import SearchSpace
from eagleray.training.spec import TrainSpec
from eagleray.training.trainer import Trainer, primary_metric
from eagleray.training.trials import Trial, TrialTracker, TuneResult, rank

__all__ = ["Budget", "make_scheduler", "require_budget", "run_trials", "share_cluster"]

_REDUCTION = 3  # ASHA lets a third of the trials go on at each look
_MAX_RANDOM = 10  # trials before Optuna learns from them

ProgressReporter = Callable[[Trial], None]


@dataclass(frozen=True)
class Budget:
    """How much a tuning may take.

    Attributes:
        trials: How many specifications are tried.
        at_once: Trials that run side by side; None for as many as there is room for.
        grace: Epochs before a trial may be stopped; None for a quarter of them.
    """

    num_trials: int
    max_concurrent: int | None
    grace_epochs: int | None

    def grace_period(self, epochs: int) -> int:
        """Return how many of a trial's epochs go by before it may be stopped.

        In the first fifth the learning rate rises, and nobody can be told from anybody.
        """
        return self.grace_epochs or max(1, round(epochs / 4))


def require_budget(budget: Budget, spec: TrainSpec) -> None:
    """Refuse a budget that cannot be, and a specification that a trial does not carry out.

    Raises:
        InputError: With the option to change.
    """
    if spec.max_workers > 1:
        raise InputError(
            f"workers {spec.workers}: a trial is one process; leave it out, and give it to "
            "`eagleray train --spec` with what the search has found."
        )
    if spec.folds:
        raise InputError("folds: trials are compared on one split; leave it out.")
    if budget.grace_epochs is not None and budget.grace_epochs > spec.epochs:
        raise InputError(
            f"--grace-epochs {budget.grace_epochs} is more than the {spec.epochs} epochs of a "
            "trial; no trial could be stopped."
        )


@dataclass(frozen=True)
class _Given:
    """What all trials are given; it travels through the object store once."""

    space: SearchSpace
    images: LabelledImages
    split: Split
    task: Task
    settings: Settings
    folder: str
    run: str
    num_threads: int
    s3: storage.S3Options


def run_trials(
    plan: TrainPlan,
    space: SearchSpace,
    budget: Budget,
    *,
    run: str,
    folder: str,
    ray_folder: str,
    settings: Settings,
    s3: storage.S3Options,
    cluster: Cluster,
    reporter: ProgressReporter = lambda _: None,
) -> TuneResult:
    """Try specifications until the budget is spent.

    Args:
        plan: Of the default; every trial has its split and its task.
        space: What is searched.
        budget: How much.
        run: Names the tuning.
        folder: Of the trials' checkpoints, reachable by every node.
        ray_folder: Where Ray Tune keeps its own notes.
        settings: Where parents are registered, and where decoded images are cached.
        s3: How S3 is reached.
        cluster: What there is to run on.
        reporter: Called with a trial after each of its epochs, and when it has ended.

    Raises:
        JobFailedError: No trial has got through an epoch.
    """
    folder, ray_folder = storage.absolute(folder), storage.absolute(ray_folder)
    at_once, share = share_cluster(plan.spec, budget, cluster)
    given = _Given(
        space=space,
        images=plan.images,
        split=plan.split,
        task=plan.task,
        settings=settings.model_copy(update={"home": settings.home_folder}),
        folder=folder,
        run=run,
        num_threads=int(share["cpu"]),
        s3=s3,
    )
    metric = primary_metric(plan.task)
    tracker = TrialTracker(metric, folder, reporter)
    _tune(given, budget, tracker, at_once=at_once, share=share, ray_folder=ray_folder)
    trials = tuple(sorted(tracker.trials.values(), key=lambda trial: trial.number))
    ranking = tuple(rank(tracker.trials))
    if not ranking:
        reasons = [trial.reason for trial in trials if trial.reason is not None]
        raise JobFailedError(
            f"None of the {len(trials)} trials got through an epoch; the first that failed says: "
            f"{reasons[0] if reasons else 'nothing'}"
        )
    return TuneResult(trials, ranking, space, metric, folder)


def share_cluster(
    spec: TrainSpec, budget: Budget, cluster: Cluster
) -> tuple[int, dict[str, float]]:
    """Return how many trials run at once, and what Ray resources each of them gets."""
    on_gpu = uses_gpu(spec, cluster)
    room = cluster.num_gpus if on_gpu else cluster.num_cpus
    at_once = min(budget.max_concurrent or room, room, budget.num_trials)
    cpus = max(1, min(cluster.num_cpus // at_once, cluster.cpus_per_node))
    return at_once, {"cpu": cpus, "gpu": 1} if on_gpu else {"cpu": cpus}


def _tune(
    given: _Given,
    budget: Budget,
    tracker: TrialTracker,
    *,
    at_once: int,
    share: dict[str, float],
    ray_folder: str,
) -> None:
    """Run Ray Tune to the end; whatever a trial does, it ends up in the tracker."""
    import optuna
    import ray.tune

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    default = given.space.default()
    spec = given.space.spec(default)
    sampler = optuna.samplers.TPESampler(
        seed=spec.seed,
        n_startup_trials=min(_MAX_RANDOM, max(2, budget.num_trials // 3)),
        # Trials that still run count as poor, or those at once would all try the same place.
        constant_liar=True,
    )
    search = _search(
        given.space.distributions(),
        metric=tracker.metric,
        mode="max",
        points_to_evaluate=[default],
        sampler=sampler,
    )
    trial = ray.tune.with_resources(ray.tune.with_parameters(run_trial, given=given), share)
    tuner = ray.tune.Tuner(
        trial,
        tune_config=ray.tune.TuneConfig(
            search_alg=search,
            scheduler=make_scheduler(tracker.metric, budget, spec.epochs),
            num_samples=budget.num_trials,
            max_concurrent_trials=at_once,
            reuse_actors=True,  # a process takes seconds to start
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=ray.tune.RunConfig(
            name="tune", storage_path=ray_folder, verbose=0, callbacks=[_watch(tracker)]
        ),
    )
    for result in tuner.fit():
        if result.error is not None:  # known only now: Tune writes it into its folder first
            tracker.explain(storage.name_of(result.path), result.error)
    storage.remove_tree(ray_folder)


def _search(*arguments: Any, **options: Any) -> Any:
    """Return Optuna's search, which takes what failed for poor; it would suggest it again."""
    from ray.tune.search.optuna import OptunaSearch

    class Learns(OptunaSearch):  # type: ignore[misc]
        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            super().on_trial_complete(trial_id, None if error else result)

    return Learns(*arguments, **options)


def make_scheduler(metric: str, budget: Budget, epochs: int) -> Any:
    """Return ASHA (Li et al. 2020), which lets the default run to its end."""
    from ray.tune.schedulers import ASHAScheduler

    class SparesTheDefault(ASHAScheduler):  # type: ignore[misc]
        def on_trial_result(self, tune_controller: Any, trial: Any, result: Any) -> str:
            action: str = super().on_trial_result(tune_controller, trial, result)
            if trial.trial_id == first.get("key") and result["epoch"] < epochs:
                return str(self.CONTINUE)
            return action

        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            first.setdefault("key", trial.trial_id)
            super().on_trial_add(tune_controller, trial)

    first: dict[str, str] = {}
    return SparesTheDefault(
        time_attr="epoch",
        metric=metric,
        mode="max",
        max_t=epochs,
        grace_period=budget.grace_period(epochs),
        reduction_factor=_REDUCTION,
    )


def _watch(tracker: TrialTracker) -> Any:
    """Return what Ray Tune calls, to fill the tracker."""
    from ray.tune import Callback

    def begin(trials: Any, trial: Any) -> None:
        # Trials start in any order, and are listed in the order in which they were suggested.
        number = [other.trial_id for other in trials].index(trial.trial_id) + 1
        tracker.begin(trial.trial_id, number, trial.config)

    class Watch(Callback):  # type: ignore[misc]
        def __reduce__(self) -> Any:
            # Tune pickles what it runs with, and the tracker speaks to a terminal.
            return Callback, ()

        def on_trial_start(self, *, trials: Any, trial: Any, **_: Any) -> None:
            begin(trials, trial)

        def on_trial_result(self, *, trial: Any, result: Any, **_: Any) -> None:
            tracker.add_epoch(trial.trial_id, result["metrics"], last=result["last"])

        def on_trial_complete(self, *, trial: Any, **_: Any) -> None:
            tracker.end(trial.trial_id)

        def on_trial_error(self, *, trials: Any, trial: Any, **_: Any) -> None:
            begin(trials, trial)
            tracker.end(trial.trial_id, failed=True)

    return Watch()


def run_trial(config: dict[str, Any], given: _Given) -> None:
    """Train one specification in this process; started by Ray Tune.

    Args:
        config: Values of the searched fields.
        given: What all trials are given.
    """
    import ray.tune

    key = ray.tune.get_context().get_trial_id()
    torch.set_num_threads(given.num_threads)
    storage.use_s3(given.s3)
    spec = given.space.spec({**config, "keep_checkpoints": 1})
    plan = plan_network(spec, given.settings, given.images, given.split, given.task)
    cache = given.settings.cache_folder
    mine = make_worker_input(
        plan,
        run=f"{given.run}-{key}",
        checkpoints=storage.join(given.folder, key),
        cache_folder=cache,
        s3=given.s3,
    )
    trainer = _TrialTrainer(mine, single_process(spec), lambda report: _tell(trainer, report))
    trainer.run()


class _TrialTrainer(Trainer):
    """A trainer that decodes after its neighbours, to find what they have decoded."""

    def prepare(self) -> None:
        folder = Path(self.given.cache_folder) / "decoded"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "tuning.lock"):
            super().prepare()


def _tell(trainer: Trainer, report: TrainEvent) -> None:
    """Tell Ray Tune of an epoch, after which it may end this process."""
    import ray.tune

    if isinstance(report, LossNotFinite):
        raise JobFailedError(describe_stop(report, trainer.given))
    if isinstance(report, EpochCompleted):
        trainer.settle()
        metric = primary_metric(trainer.given.task)
        ray.tune.report(
            {
                "epoch": report.epoch,
                metric: report.metrics[metric],
                "metrics": report.metrics,
                "last": report.ended_early or report.epoch == trainer.spec.epochs,
            }
        )
