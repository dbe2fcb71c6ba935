"""Chooses the engine that runs a network: eager, or compiled if that pays or is cached."""

from __future__ import annotations

from pathlib import Path

from eagleray.core.types import CompileMode
from eagleray.inference.compiled import CompiledEngine, compilation_pays, compiled_path
from eagleray.inference.eager import EagerEngine
from eagleray.inference.engine import ENGINES, Engine
from eagleray.inference.plan import ExecutionPlan
from eagleray.models.package import ModelPackage

__all__ = ["choose_engine"]


def choose_engine(
    package: ModelPackage,
    plan: ExecutionPlan,
    *,
    compile_mode: CompileMode,
    expected_images: int,
    cache_folder: Path,
) -> Engine:
    """Return the engine for a network.

    Args:
        package: The model package.
        plan: How the network runs.
        compile_mode: On a CPU `auto` compiles if the time saved on `expected_images` exceeds the
            cost, and always uses a compiled network in the cache. On other devices it does neither.
        expected_images: Number of images that `plan.num_threads` threads will predict.
        cache_folder: The folder of the cache.
    """
    compiles = compile_mode == "always" or (
        compile_mode == "auto"
        and plan.device == "cpu"
        and (
            compiled_path(package, plan, cache_folder).exists()
            or compilation_pays(package, plan, expected_images)
        )
    )
    return ENGINES.get(CompiledEngine.name if compiles else EagerEngine.name)
