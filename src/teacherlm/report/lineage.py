"""What a finetuning was made from and with, apart from the seed. Runs for which this is the same are replicates.

The manifest of a finetuning has its arguments and the digests of its inputs. A dataset that differs by its seed alone
(the teacher's texts are drawn anew with another SEED) has another digest. Therefore a digest stands for how its content
was made, as far as the manifests of the run's folder say: stage, arguments without the seed, and inputs, back to the
files that no stage made.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEEPEST = 20
"""Maximum number of stages between a finetuning and the first file. A chain has five."""
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Recorded:
    """What the manifest of a finished finetuning says.

    Attributes:
        kin: a text that runs have in common if they differ in nothing but the seed.
        seed: the seed of the finetuning.
        inputs: the digests of the inputs. They tell runs apart whose texts alone have different seeds.
        last_step: the step of the last checkpoint, or None if the manifest names no checkpoint.
    """

    kin: str
    seed: int
    inputs: tuple[str, ...]
    last_step: int | None


class Lineage:
    """How contents were made, by the manifests of the stages that made them.

    Args:
        found: (path, manifest) of each stage, as `shown_manifests.read_manifests` returns them.
    """

    def __init__(self, found: Iterable[tuple[Path, Mapping[str, Any]]]):
        self.makers: dict[str, tuple[str, Mapping[str, Any]]] = {}
        self.known: dict[str, str] = {}
        for _, manifest in found:
            for name, output in manifest["outputs"].items():
                self.makers.setdefault(output["sha256"], (name, manifest))

    def of_digest(self, digest: str, deepest: int = DEEPEST) -> str:
        """A text that is the same for contents that were made in the same way, apart from the seed.

        It is the digest itself if no manifest says how the content was made.
        """
        if digest not in self.makers or deepest == 0:
            return digest
        if digest not in self.known:
            self.known[digest] = digest  # manifests that others have written may lead in a circle
            name, manifest = self.makers[digest]
            self.known[digest] = digest_of([name, self.of_work(manifest, deepest - 1)])
        return self.known[digest]

    def of_work(self, manifest: Mapping[str, Any], deepest: int = DEEPEST) -> str:
        """A text that is the same for work of one stage with the same arguments and inputs, apart from the seed."""
        arguments = {name: value for name, value in manifest.get("arguments", {}).items() if name != "seed"}
        inputs = {name: self.of_digest(one["sha256"], deepest) for name, one in manifest.get("inputs", {}).items()}
        return digest_of([manifest["stage"], manifest.get("version", 1), arguments, inputs])

    def recorded(self, manifest: Mapping[str, Any] | None) -> Recorded | None:
        """What the manifest of a finetuning records, or None if it is missing or does not have a seed."""
        if manifest is None or manifest["stage"] != "finetune":
            return None
        seed = manifest.get("arguments", {}).get("seed")
        if not isinstance(seed, int) or isinstance(seed, bool):
            return None
        steps = [int(match[1]) for name in manifest["outputs"] if (match := CHECKPOINT.fullmatch(name))]
        inputs = tuple(one["sha256"] for _, one in sorted(manifest.get("inputs", {}).items()))
        return Recorded(self.of_work(manifest), seed, inputs, max(steps, default=None))


def digest_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def is_of_several_sets(manifest: Mapping[str, Any]) -> bool:
    """Whether a finetuning has several training sets, whose datasets lie in the folders of their benchmarks."""
    return manifest["stage"] == "finetune" and "dataset 1" in manifest.get("inputs", {})
