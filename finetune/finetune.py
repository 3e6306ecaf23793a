"""Finetune a student on the texts of a dataset, a checkpoint an epoch.

Checkpoints, log.jsonl and the manifest go to --output_dir. When checkpoints of the same run are there, training
resumes from the last whole one and goes on to the full number of epochs.

All flags of transformers' TrainingArguments are taken as well; `finetune.py --help` lists them.
"""

import sys
import time
from pathlib import Path
from typing import Any

from teacherlm import manifests
from teacherlm.errors import UserError, run
from teacherlm.files import require_writable
from teacherlm.models import describe_model, find_model, local_folder


def main() -> None:
    from arguments import parse_arguments
    from checkpoints import claim_folder

    started = time.time()
    own, training = parse_arguments(sys.argv[1:])
    output = Path(training.output_dir)
    dataset_folder = Path(own.dataset_name)
    model_folder = local_folder(find_model(own.model_name_or_path))
    require_writable(output.parent)

    manifest_path = manifests.manifest_of(output)
    manifest = manifests.read_manifest(manifest_path)
    arguments, inputs = describe_run(own, training, dataset_folder, model_folder, manifest)
    epochs = {"num_train_epochs": training.num_train_epochs, "max_steps": training.max_steps}
    if not manifests.changes(manifest, "finetune", {**arguments, **epochs}, inputs):
        print(f"finetune: done already, nothing to do ({manifest_path} matches its inputs)")
        return

    dataset = load(own, dataset_folder)
    last = claim_folder(output, arguments, inputs, own.restart)
    counts = train(own, training, dataset, model_folder, last)
    checkpoints = sorted(output.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    manifests.write_manifest(
        manifest_path,
        stage="finetune",
        arguments={**arguments, **epochs},
        inputs=inputs,
        outputs={path.name: describe_model(path) for path in checkpoints},
        counts={**counts, "seconds": round(time.time() - started, 1)},
        started=started,
    )
    print(f"finetune: {len(checkpoints)} checkpoints in {output}: {', '.join(path.name for path in checkpoints)}")


def describe_run(
    own: Any, training: Any, dataset_folder: Path, model_folder: Path, manifest: dict[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the checkpoints depend on: flags that shape the numbers, and digests of dataset and student."""
    if not dataset_folder.is_dir():
        raise UserError(f"{dataset_folder}: no such dataset; data_prepare.py makes it")
    known = (manifest or {}).get("inputs", {})
    names = (
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "warmup_steps",
        "weight_decay",
        "max_grad_norm",
        "seed",
    )
    arguments = {name: getattr(own, name) for name in ("task_type", "max_source_length", "max_train_samples")}
    arguments |= {name: getattr(training, name) for name in names}
    arguments["lr_scheduler_type"] = str(training.lr_scheduler_type.value)
    inputs = {
        "dataset": manifests.describe(dataset_folder, known.get("dataset")),
        "student": describe_model(model_folder, known.get("student")),
    }
    return arguments, inputs


def load(own: Any, folder: Path) -> Any:
    import datasets
    from samples import load_train_split

    datasets.disable_progress_bars()
    dataset = load_train_split(folder, own.task_type)
    return dataset.select(range(min(len(dataset), own.max_train_samples))) if own.max_train_samples else dataset


def train(own: Any, training: Any, dataset: Any, model_folder: Path, last: Path | None) -> dict[str, Any]:
    """Train to the full number of epochs, from `last` when there is one; returns counts for the manifest."""
    import torch
    from checkpoints import LOG, LossLog, WholeCheckpointTrainer
    from samples import Collator, tokenize
    from transformers import set_seed

    from teacherlm.loading import load_model, load_tokenizer

    set_seed(training.seed)
    tokenizer = load_tokenizer(model_folder)
    model = load_model(model_folder, dtype=torch.float32)
    tokens, cut = tokenize(dataset, tokenizer, own.task_type, own.max_source_length)
    if cut:
        print(
            f"finetune: {cut} of {len(tokens)} samples had more than {own.max_source_length} tokens: cut at their left"
        )
    device, accumulated = training.train_batch_size, training.gradient_accumulation_steps
    effective = device * accumulated * training.world_size
    print(
        f"finetune: {len(tokens)} samples of {own.task_type}, {effective} a step "
        f"({device} x {accumulated} accumulated x {training.world_size} processes)"
    )
    if last is not None:
        print(f"finetune: going on from {last}")
    step = int(last.name.split("-")[1]) if last else 0
    trainer = WholeCheckpointTrainer(
        model=model,
        args=training,
        train_dataset=tokens,
        processing_class=tokenizer,
        data_collator=Collator(tokenizer.pad_token_id),
        callbacks=[LossLog(Path(training.output_dir) / LOG, step)],
    )
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    return {"samples": len(tokens), "cut": cut, "steps": trainer.state.global_step, "effective_batch": effective}


if __name__ == "__main__":
    run(main)
