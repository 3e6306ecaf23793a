"""No private interface of a library is used outside runtime/compat/."""

import ast
from collections.abc import Iterator
from pathlib import Path

from support.programs import ROOT

PACKAGE = ROOT / "src" / "teacherlm"
COMPAT = PACKAGE / "runtime" / "compat"

DOCUMENTED = {"_asdict", "_replace", "_fields", "_exit"}
"""Names with an underscore that Python documents: those of named tuples and os._exit."""
OWN = {("scoring/task_api.py", "_convert_standard")}
"""Names that task files of lm-eval 0.2 override. They are therefore an interface of this project."""
PUBLIC_MODULES = {
    "transformers.cache_utils",  # documented at "Caching"
    "transformers.integrations.sdpa_attention", "transformers.masking_utils",  # documented at "Attention interface"
    "transformers.modeling_outputs", "transformers.trainer_callback", "transformers.trainer_utils",
    "transformers.data.metrics",  # the SQuAD tasks of lm-eval 0.3 are scored with it
    "torch.distributed", "torch.nn.functional", "torch.utils.data", "safetensors.torch",
    "lm_eval.api.instance", "lm_eval.api.metrics", "lm_eval.api.task", "lm_eval.tasks", "accelerate.utils",
}  # fmt: skip
"""Modules of libraries whose names are documented."""
LIBRARIES = ("transformers", "torch", "accelerate", "deepspeed", "lm_eval", "peft", "datasets", "vllm", "safetensors")
REBOUND = {
    ("scoring/old_modules.py", "datasets.load_metric"),  # task files import it, and the library no longer has it
    ("finetune/chunked_loss.py", "head.forward = types.MethodType(chunked, head)"),
    ("finetune/single_samples.py", "model.forward = one_at_a_time"),
    ("finetune/chunked_loss.py", "inner.loss_function = finish"),  # a property that can be set
    ("scoring/permutations.py", "task.process_results = lambda"),
    ("scoring/permutations.py", "task.debias = lambda"),  # an attribute of this project
}
"""Attributes that are set on purpose on objects of libraries. torch documents that calling a model calls its `forward`,
and lm-eval documents that a task file defines `process_results`."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name.strip("_") != "" and name not in DOCUMENTED


def private_uses(path: Path) -> Iterator[str]:
    """All uses of a library's private names and internal modules, all attributes of a library's modules that are set,
    and all functions that replace another one."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found = [node.module or ""]
            yield from (f"{node.module}.{alias.name}" for alias in node.names if is_private(alias.name))
        else:
            continue
        for module in found:
            library = module.split(".")[0]
            if library in LIBRARIES and module not in {library, *PUBLIC_MODULES}:
                yield module
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            yield node.attr
        if isinstance(node, ast.FunctionDef) and is_private(node.name):
            yield node.name
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr", "hasattr", "delattr"):
            yield from (one.value for one in node.args if isinstance(one, ast.Constant) and is_private(str(one.value)))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            owner = imported.get(node.value.id, "") if isinstance(node.value, ast.Name) else ""
            if owner.split(".")[0] in LIBRARIES:
                yield f"{owner}.{node.attr}"
        if isinstance(node, ast.Assign) and is_function(node.value, functions):
            said = "lambda" if isinstance(node.value, ast.Lambda) else ast.unparse(node.value)
            for target in node.targets:
                if isinstance(target, ast.Attribute) and getattr(target.value, "id", "") not in {
                    "self",
                    "cls",
                    *imported,
                }:
                    yield f"{ast.unparse(target)} = {said}"


def is_function(value: ast.expr, functions: set[str]) -> bool:
    """Whether an expression is a function of the file, a lambda, or a method made of a function."""
    made = isinstance(value, ast.Call) and ast.unparse(value.func).endswith("MethodType")
    return made or isinstance(value, ast.Lambda) or (isinstance(value, ast.Name) and value.id in functions)


def test_no_private_use_is_left_outside() -> None:
    left = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if COMPAT in path.parents:
            continue
        name = path.relative_to(PACKAGE).as_posix()
        left += [f"{name}: {use}" for use in private_uses(path) if (name, use) not in OWN | REBOUND]
    assert left == [], "move it to src/teacherlm/runtime/compat/, or use a public interface"


def test_uses_are_found(tmp_path: Path) -> None:
    """The test above finds every kind of use that this project has had."""
    file = tmp_path / "uses.py"
    file.write_text(
        """
import datasets
import transformers.models.bloom.modeling_bloom as bloom
from accelerate import PartialState
from pickle import _Unpickler
from transformers.trainer_pt_utils import safe_globals
datasets.load_metric = print
PartialState.prepare = print
model._tr_loss += 1
model.generate = lambda: 1
getattr(model, "_supports_x")
class Own:
    def _save_checkpoint(self): ...
    def __init__(self): ...
for _ in ():
    os._exit(0)
"""
    )
    assert sorted(private_uses(file)) == [
        "_save_checkpoint", "_supports_x", "_tr_loss", "accelerate.PartialState.prepare", "datasets.load_metric",
        "model.generate = lambda", "pickle._Unpickler", "transformers.models.bloom.modeling_bloom",
        "transformers.trainer_pt_utils",
    ]  # fmt: skip


def test_each_file_is_tested_and_says_why() -> None:
    tested = (ROOT / "tests" / "stages" / "test_compat.py").read_text(encoding="utf-8")
    for path in sorted(COMPAT.glob("of_*.py")):
        assert path.name in tested
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert len(ast.get_docstring(tree) or "") > 40
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"
                assert node.name in tested, f"{path.name}: {node.name} has no test"
