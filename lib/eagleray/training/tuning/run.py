"""Runs the trials of a tuning through Ray Tune and ranks them.

    search space -> Optuna suggests -> a trial trains -> ASHA stops or continues it -> ranking

A tuning that is resumed keeps the trials that have ended, starts those over that had not, and
searches on. A trial is one process with a share of the cores, or a GPU. The first trial is the
default, and is never stopped early, so that the gain of the search is measured. The test split is
not used.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from eagleray.core.errors import JobFailedError
from eagleray.core.job_channel import process_channel
from eagleray.core.ray_session import Cluster
from eagleray.core.settings import Settings
from eagleray.io import storage
from eagleray.training.plan import TrainPlan
from eagleray.training.runs import Run
from eagleray.training.tuning.budget import Budget, share_cluster
from eagleray.training.tuning.ray_tune import make_callback, make_scheduler, make_searcher
from eagleray.training.tuning.record import write_tuning
from eagleray.training.tuning.search_space import SearchSpace
from eagleray.training.tuning.trial_worker import TrialInput, run_trial
from eagleray.training.tuning.trials import OnTrial, Trial, TrialTracker, TuneResult, rank

__all__ = ["run_trials"]


def run_trials(
    plan: TrainPlan,
    space: SearchSpace,
    budget: Budget,
    run: Run,
    *,
    settings: Settings,
    s3: storage.S3Options,
    cluster: Cluster,
    earlier: Sequence[Trial] = (),
    on_trial: OnTrial = lambda _: None,
) -> TuneResult:
    """Run trials until the budget is used up.

    Args:
        plan: Plan of the default; every trial has its split and its task.
        space: Search space.
        budget: Number of trials and their concurrency.
        run: Run of the tuning; its folder is reachable from every node.
        settings: Settings of the registry and the caches.
        s3: Options of S3 access.
        cluster: Cluster to run on.
        earlier: Trials of before a resume, by number.
        on_trial: Receives a trial after each of its epochs, and when it has ended.

    Raises:
        JobFailedError: If no trial has finished an epoch.
    """
    folder = storage.absolute(storage.join(run.folder, "trials"))
    concurrent, resources = share_cluster(plan.spec, budget, cluster)
    trial_input = TrialInput(
        space=space,
        images=plan.images,
        split=plan.split,
        task=plan.task,
        settings=settings.model_copy(update={"home": settings.home_folder}),
        folder=folder,
        run=run.name,
        num_threads=int(resources["cpu"]),
        s3=s3,
    )
    tracker = TrialTracker(
        plan.monitor, folder, on_trial, save=functools.partial(write_tuning, run, budget)
    )
    _keep_ended(tracker, earlier)
    if len(tracker.trials) < budget.num_trials:
        process_channel().hold(
            cores=concurrent * resources["cpu"], gpus=concurrent * resources.get("gpu", 0.0)
        )
        _run_tuner(
            trial_input,
            budget,
            tracker,
            earlier,
            concurrent=concurrent,
            resources=resources,
            ray_folder=storage.absolute(run.ray_folder),
        )
    trials = tuple(sorted(tracker.trials.values(), key=lambda trial: trial.number))
    ranking = tuple(rank(tracker.trials, plan.monitor))
    if not ranking:
        reasons = [trial.reason for trial in trials if trial.reason is not None]
        raise JobFailedError(
            f"None of the {len(trials)} trials finished an epoch; the reason of the first failure: "
            f"{reasons[0] if reasons else 'unknown'}"
        )
    return TuneResult(trials, ranking, space, plan.monitor, folder)


def _keep_ended(tracker: TrialTracker, earlier: Sequence[Trial]) -> None:
    """Add the trials that have ended to a tracker, and delete what the others have left."""
    for trial in earlier:
        folder = storage.join(tracker.folder, trial.key)
        if trial.state != "running":
            tracker.trials[trial.key] = trial
            tracker.on_trial(trial)
        elif storage.is_folder(folder):
            storage.remove_tree(folder)


def _run_tuner(
    trial_input: TrialInput,
    budget: Budget,
    tracker: TrialTracker,
    earlier: Sequence[Trial],
    *,
    concurrent: int,
    resources: dict[str, float],
    ray_folder: str,
) -> None:
    """Run Ray Tune to the end; every trial ends up in the tracker."""
    import ray.tune

    if storage.is_folder(ray_folder):
        storage.remove_tree(ray_folder)  # Ray's state of before a resume
    space, monitor = trial_input.space, tracker.monitor
    ended = [trial for trial in earlier if trial.state != "running"]
    again = [trial.number for trial in earlier if trial.state == "running"]
    known = {trial.number for trial in earlier}
    numbers = [*again, *(n for n in range(1, budget.num_trials + 1) if n not in known)]
    trainable = ray.tune.with_parameters(run_trial, trial_input=trial_input)
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trainable, resources),
        tune_config=ray.tune.TuneConfig(
            search_alg=make_searcher(space, monitor, budget, earlier),
            scheduler=make_scheduler(monitor, budget, space.spec(space.default()).epochs, ended),
            num_samples=len(numbers),
            max_concurrent_trials=concurrent,
            reuse_actors=True,  # a process takes seconds to start
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=ray.tune.RunConfig(
            name="tune",
            storage_path=ray_folder,
            verbose=0,
            callbacks=[make_callback(tracker, numbers)],
        ),
    )
    for result in tuner.fit():
        if result.error is not None:  # Tune has the error only after it wrote it into its folder
            tracker.explain(storage.name_of(result.path), result.error)
    storage.remove_tree(ray_folder)
