"""Evaluate a reader and its retriever on multiple-choice questions.

Writes {checkpoint_dir}/{name}/{file}-step-{n}.jsonl, a prediction a question, and a manifest beside it. Several workers
share the questions and the index: `srun python evaluate.py ...` or `torchrun --nproc_per_node 2 evaluate.py ...`.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# The project's folder in place of this one, whose evaluate.py is not the library of that name.
sys.path[:] = [str(HERE.parent), *(place for place in sys.path if place != str(HERE))]

import torch  # noqa: E402

from atlas import multiple_choice, options, reader, workers  # noqa: E402
from atlas.index import Index  # noqa: E402
from atlas.model import Model, load_model, make_index  # noqa: E402
from atlas.retrieval import look_up, retrieve  # noqa: E402
from teacherlm import manifests  # noqa: E402
from teacherlm.errors import UserError, run  # noqa: E402
from teacherlm.files import require_writable, whole_file  # noqa: E402
from teacherlm.interrupts import REQUEUE, Stop  # noqa: E402
from teacherlm.progress_file import ProgressFile, done_keys  # noqa: E402
from teacherlm.prompts import LETTERS  # noqa: E402
from teacherlm.records import Record, dump_line  # noqa: E402

STAGE = "atlas evaluate"
NO_PASSAGE = {"title": "", "text": ""}


def main() -> int:
    asked = options.check(options.parser(__doc__).parse_args())
    if not asked.eval_data:
        raise UserError("--eval_data: at least one file of questions was expected")
    folder = asked.checkpoint_dir / asked.name
    require_writable(folder)
    torch.manual_seed(asked.seed)
    device = workers.join_workers(asked.main_port)
    files = {path: read_questions(asked, path) for path in asked.eval_data}
    model = load_model(asked, device)
    index = make_index(asked, model, device) if asked.retrieves else None
    stop = Stop()
    try:
        for path, questions in files.items():
            if not evaluate(asked, path, questions, model, index, stop):
                print("evaluate: interrupted; the same command goes on from there")
                return REQUEUE
    finally:
        stop.restore()
    workers.leave()
    return 0


def read_questions(asked: argparse.Namespace, path: Path) -> list[Record]:
    questions = multiple_choice.read_questions(path, asked.multiple_choice_num_options)
    for number, question in enumerate(questions, start=1) if asked.use_file_passages else ():
        passages = question.get("passages")
        if not isinstance(passages, list) or not all(
            isinstance(p, dict) and {"title", "text"} <= p.keys() for p in passages
        ):
            raise UserError(
                f"{path}, question {number}: --use_file_passages needs its field passages: [{{title, text}}, ...]"
            )
    return questions


def evaluate(
    asked: argparse.Namespace, path: Path, questions: list[Record], model: Model, index: Index | None, stop: Stop
) -> bool:
    """Evaluate one file of questions; all workers call it together. False when it was interrupted.

    Each prediction is on the disk as soon as it is made; a restart, with however many workers, makes what is missing.
    """
    started = time.time()
    result = asked.checkpoint_dir / asked.name / f"{path.stem}-step-{model.step}.jsonl"
    work = describe_work(asked, path, model, index)
    inputs = {"questions": manifests.describe(path)}
    manifest = manifests.read_manifest(manifests.manifest_of(result))
    if not any(workers.gather_objects(manifests.changes(manifest, STAGE, work, inputs))):
        workers.say(f"evaluate: {path}: done already, nothing to do ({result} matches its inputs)")
        return True
    own = result.with_name(f".{result.stem}.worker-{workers.rank()}.progress")
    progress = ProgressFile(own, work, restart=True)
    workers.wait_for_all()
    done = [done_keys(file, work) for file in progress_files(result)]
    missing = sorted(set(range(len(questions))) - set().union(*done))
    workers.say(f"evaluate: {path}: {len(questions)} questions, {len(questions) - len(missing)} of them done before")
    mine = missing[workers.rank() :: workers.size()]
    workers.wait_for_all()  # all have seen the same files before one is appended to
    try:
        for number, prediction in predict(asked, [(number, questions[number]) for number in mine], model, index):
            progress.append(number, prediction)
            if stop.asked:
                return False
    finally:
        progress.close()
    workers.wait_for_all()
    if workers.is_first():
        conclude(asked, path, result, len(questions), work, inputs, started)
    workers.wait_for_all()
    return True


def describe_work(asked: argparse.Namespace, path: Path, model: Model, index: Index | None) -> dict[str, Any]:
    """What predictions depend on: flags, the questions, the model and the index."""
    names = [
        "precision",
        "model_path",
        "reader_model_type",
        "retriever_model_path",
        "text_maxlength",
        "target_maxlength",
    ]
    names += ["n_context", "encoder_format", "retriever_format", "generation_max_length", "closed_book"]
    names += ["use_file_passages", "retrieve_only", "multiple_choice_eval_permutations", "dont_write_passages"]
    names += ["index_mode", "faiss_index_type", "faiss_code_size"]
    described = {name: getattr(asked, name) for name in names}
    described |= {"write_results": asked.write_results, "encoder": model.encoder, "step": model.step}
    described |= {"questions": manifests.sha256(path)}
    if index is not None:
        described["passages"] = len(index.passages)
    return described


def progress_files(result: Path) -> list[Path]:
    return sorted(result.parent.glob(f".{result.stem}.worker-*.progress"))


def predict(
    asked: argparse.Namespace, questions: list[tuple[int, Record]], model: Model, index: Index | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number of the question, {"prediction": its record, "losses": of its permutations}).

    First all passages are retrieved, together with the other workers; then each worker reads for itself, the longest
    questions first.
    """
    kind = asked.multiple_choice_eval_permutations
    orders = [multiple_choice.permutations(question, kind) for _, question in questions]
    prompts = [[multiple_choice.prompt(model.reader_tokenizer, order) for order in asked_of] for asked_of in orders]
    rows = None
    if index is not None:
        queries = list(itertools.chain.from_iterable(prompts))
        _, rows = retrieve(model, index, queries, asked.n_context, asked.text_maxlength)
    first = list(itertools.accumulate((len(texts) for texts in prompts), initial=0))
    for place in sorted(range(len(questions)), key=lambda place: -len(prompts[place][0])):
        number, question = questions[place]
        if rows is not None:
            passages = [look_up(index, found) for found in rows[first[place] : first[place + 1]]]
        elif asked.closed_book:
            passages = [[NO_PASSAGE]] * len(prompts[place])
        else:
            passages = [question["passages"][: asked.n_context] or [NO_PASSAGE]] * len(prompts[place])
        predictions = [
            {"query": query, "answers": [order["answer"]], "passages": found, "metadata": order}
            for query, order, found in zip(prompts[place], orders[place], passages)
        ]
        losses: list[float] = []
        if model.reader is not None:
            losses = read(asked, model.reader, predictions)
        for prediction in predictions if asked.dont_write_passages else ():
            del prediction["passages"]
        reduced = predictions[0] if model.reader is None else multiple_choice.reduce_permutations(predictions)
        yield number, {"prediction": reduced, "losses": losses}


@torch.no_grad()
def read(asked: argparse.Namespace, of: reader.Reader, predictions: list[dict[str, Any]]) -> list[float]:
    """Let the reader answer: adds choice_logits and generation to the predictions, and returns their losses."""
    letters = LETTERS[: asked.multiple_choice_num_options]
    tokens = multiple_choice.choice_tokens(of.tokenizer, letters)
    losses = []
    for start in range(0, len(predictions), asked.per_gpu_batch_size):
        batch = predictions[start : start + asked.per_gpu_batch_size]
        texts = [
            [asked.encoder_format.format(query=p["query"], **text_of(passage)) for passage in p["passages"]]
            for p in batch
        ]
        states, mask = reader.encode(of, texts)
        targets = [multiple_choice.target(prediction["metadata"]) for prediction in batch]
        labels = reader.target_labels(of, targets, asked.target_maxlength)
        logits_BTV, loss = reader.decode(of, states, mask, labels)
        written = reader.generate(of, states, mask, asked.generation_max_length)
        for prediction, logits_TV, text in zip(batch, logits_BTV, written):
            prediction["generation"] = text
            prediction["choice_logits"] = dict(zip(letters, logits_TV[1, tokens].tolist()))
        losses += [loss.item()] * len(batch)
    return losses


def text_of(passage: dict[str, str]) -> dict[str, str]:
    return {"title": passage["title"], "text": passage["text"]}


def conclude(
    asked: argparse.Namespace,
    path: Path,
    result: Path,
    count: int,
    work: dict[str, Any],
    inputs: dict[str, Any],
    started: float,
) -> None:
    """Put the workers' predictions together, in the order of the questions; score them; write the manifest, last."""
    metrics = Metrics()
    files = [ProgressFile(file, work, restart=True) for file in progress_files(result)]
    outputs = {}
    lines = in_order(files, count)
    if asked.write_results:
        with whole_file(result) as file:
            for piece in lines:
                metrics.add(piece)
                file.write(dump_line(piece["prediction"]) + "\n")
        outputs = {"predictions": manifests.describe(result)}
    else:
        for piece in lines:
            metrics.add(piece)
    counts = {"questions": count, **metrics.means(), "seconds": round(time.time() - started, 1)}
    manifests.write_manifest(
        manifests.manifest_of(result),
        stage=STAGE,
        arguments=work,
        inputs=inputs,
        outputs=outputs,
        counts=counts,
        started=started,
    )
    for file in files:
        file.close()
        file.remove()
    scores = "".join(f" | {value:.3f} {name}" for name, value in metrics.means().items())
    print(f"Dataset: {path.name}{scores}", flush=True)


def in_order(files: list[ProgressFile], count: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        yield next(file for file in files if number in file).read(number)


class Metrics:
    """Percentages, as the reference logs them: `accuracy` of what the reader wrote, over all permutations;
    `debiased_accuracy` over the questions; and the mean loss."""

    def __init__(self) -> None:
        self.debiased: list[float] = []
        self.written: list[float] = []
        self.losses: list[float] = []

    def add(self, piece: dict[str, Any]) -> None:
        prediction = piece["prediction"]
        if "permutations" not in prediction:
            return
        self.debiased.append(100.0 * (prediction["generation"] in prediction["answers"]))
        self.written += [100.0 * (asked["generation"] in asked["answers"]) for asked in prediction["permutations"]]
        self.losses += piece["losses"]

    def means(self) -> dict[str, float]:
        found = {"debiased_accuracy": self.debiased, "accuracy": self.written, "eval_loss": self.losses}
        return {name: sum(values) / len(values) for name, values in found.items() if values}


if __name__ == "__main__":
    run(main)
