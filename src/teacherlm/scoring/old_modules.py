"""Modules that task files of lm-eval 0.2 and 0.3 import and that today's libraries no longer have.

`install` makes these importable: `lm_eval.base` (rf and the task classes), `lm_eval.metrics`, `lm_eval.tasks.common`,
`lm_eval.datasets.X.X` (loading scripts, whose files DATASET_PATH names), and `datasets.load_metric`. The import of any
other missing name fails, and task_files.py reports the name.
"""

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any

import datasets
import lm_eval
import lm_eval.api.metrics
import lm_eval.tasks

from teacherlm.scoring import task_api
from teacherlm.scoring.task_files import OLD_DATASETS

SCRIPTS = "lm_eval.datasets"


def yesno(value: object) -> str:
    return "yes" if value else "no"


def load_metric(path: str, config_name: str | None = None, **kwargs: Any) -> Any:
    """`datasets.load_metric`. Its libraries are loaded only when a task calls it."""
    from teacherlm.scoring import old_metrics

    return old_metrics.load_metric(path, config_name, **kwargs)


def install() -> None:
    """Make the old modules importable in this process."""
    names = {**vars(lm_eval.api.metrics), "weighted_perplexity": task_api.weighted_perplexity, "yesno": yesno}
    metrics = module("lm_eval.metrics", **names)
    base = {name: getattr(metrics, name) for name in ("mean", "weighted_mean", "weighted_perplexity", "bits_per_byte")}
    kinds = (task_api.Task, task_api.MultipleChoiceTask, task_api.PerplexityTask, task_api.HFTask, task_api.Request)
    module("lm_eval.base", rf=task_api.rf, **base, **{kind.__name__: kind for kind in kinds})
    module("lm_eval.tasks.common", HFTask=task_api.HFTask, yesno=yesno)
    if not any(isinstance(finder, ScriptFinder) for finder in sys.meta_path):
        sys.meta_path.append(ScriptFinder())
    datasets.load_metric = load_metric


def module(name: str, **contents: Any) -> ModuleType:
    """Create a module and add it to its package, as if it had been imported."""
    made = ModuleType(name, "Names of lm-eval 0.3; see src/teacherlm/scoring/old_modules.py.")
    vars(made).update({key: value for key, value in contents.items() if not key.startswith("__")})
    sys.modules[name] = made
    parent, _, last = name.rpartition(".")
    setattr(sys.modules[parent], last, made)
    return made


class ScriptFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `lm_eval.datasets.X.X`: an empty module whose `__file__` is `lm_eval/datasets/X/X.py`, for DATASET_PATH."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != SCRIPTS and not fullname.startswith(f"{SCRIPTS}."):
            return None
        spec = importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        spec.submodule_search_locations = []
        return spec

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = OLD_DATASETS + module.__name__.removeprefix(SCRIPTS).replace(".", "/") + ".py"
