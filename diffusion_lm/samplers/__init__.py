"""Samplers. Each module names the families of objectives that it can serve in SERVES."""

import importlib
import pkgutil

from diffusion_lm.types import Objective


def check(name: str, objective: Objective) -> None:
    """Raises ValueError, with the samplers that do serve it, if sampler `name` cannot."""
    serves = {
        m.name: getattr(importlib.import_module(f"{__name__}.{m.name}"), "SERVES", ())
        for m in pkgutil.iter_modules(__path__)
    }
    if not set(objective.families) & set(serves[name]):
        can = ", ".join(n for n, some in serves.items() if set(objective.families) & set(some))
        kind = objective.families[0].replace("_", "-")
        raise ValueError(
            f"the {name} sampler cannot serve this {kind} model; it is served by: {can}"
        )
