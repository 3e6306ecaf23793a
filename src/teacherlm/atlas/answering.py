"""Make predictions for questions: retrieve, read, average over permutations, and score. The workers of a run split the
questions."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from teacherlm.atlas import multiple_choice, reader, workers
from teacherlm.atlas.flags import AtlasFlags
from teacherlm.atlas.index import Index
from teacherlm.atlas.lookup import look_up, retrieve
from teacherlm.atlas.model import Model
from teacherlm.catalog.prompts import LETTERS
from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.core.files import whole_file
from teacherlm.core.interrupts import Stop
from teacherlm.core.progress_file import ProgressFile, done_keys
from teacherlm.core.records import Record, dump_line
from teacherlm.core.stage_run import StageRun
from teacherlm.core.terminal import plural, shown

STAGE = "atlas evaluate"
SHAPING = ("precision", "reader_model_type", "retriever_model_path", "query_side_retriever_training")
SHAPING += ("text_maxlength", "target_maxlength", "n_context", "encoder_format", "retriever_format")
SHAPING += ("generation_max_length", "closed_book", "use_file_passages", "retrieve_only", "max_passages")
SHAPING += ("multiple_choice_num_options", "multiple_choice_eval_permutations", "index_mode", "faiss_index_type")
SHAPING += ("faiss_code_size", "write_results", "dont_write_passages", "decoder_format", "decoder_prompt_format")
SHAPING += ("generation_min_length", "generation_num_beams", "generation_length_penalty", "retrieve_with_rerank")
SHAPING += ("n_to_rerank_with_retrieve_with_rerank",)
"""The flags that predictions depend on."""
NO_PASSAGE = {"title": "", "text": ""}


def read_questions(flags: AtlasFlags, path: Path) -> list[Record]:
    questions = multiple_choice.read_questions(path, flags.multiple_choice_num_options)
    for number, question in enumerate(questions, start=1) if flags.use_file_passages else ():
        given = question.get("passages")
        if not isinstance(given, list) or not all(isinstance(p, dict) and {"title", "text"} <= p.keys() for p in given):
            where = f"{path}, question {number}"
            raise UserError(f"{where}: --use_file_passages needs the field passages: [{{title, text}}, ...]")
    return questions


def result_of(flags: AtlasFlags, path: Path, step: int) -> Path:
    """The file for the predictions of a file of questions."""
    return flags.checkpoint_dir / flags.name / f"{path.stem}-step-{step}.jsonl"


class Evaluation:
    """One file of questions: where its predictions go, what they depend on, and whether they exist.

    Args:
        step: the step of the model.
        sources: a function from earlier descriptions of the inputs to the current ones, without the questions.
    """

    def __init__(self, flags: AtlasFlags, path: Path, step: int, sources: Callable[[dict[str, Any]], dict]):
        self.flags, self.path, self.sources = flags, path, sources
        self.result = result_of(flags, path, step)
        self.run = StageRun(STAGE, self.result, label="evaluate", processes=workers)

    def is_done(self) -> bool:
        """Whether the predictions exist and are valid. The first worker checks this for all workers."""
        self.run.compare(*workers.from_first(self.describe))
        return self.run.is_done

    def describe(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the predictions depend on: (flags, digests of the inputs)."""
        inputs = {"questions": manifests.describe(self.path), **self.sources(self.run.known)}
        return {name: getattr(self.flags, name) for name in SHAPING}, inputs

    def progress_files(self) -> list[Path]:
        return sorted(self.result.parent.glob(f".{self.result.stem}.worker-*.progress"))


def evaluate(of: Evaluation, questions: list[Record], model: Model, index: Index | None, stop: Stop) -> bool:
    """Evaluate one file of questions. All workers call this together. Returns False if it was interrupted.

    Each prediction is written to disk as soon as it is made. A restart, with any number of workers, makes only the
    missing predictions.
    """
    file = of.result.with_name(f".{of.result.stem}.worker-{workers.rank()}.progress")
    progress = ProgressFile(file, of.run.work, restart=True)
    workers.wait_for_all()
    done = set().union(*(done_keys(file, of.run.work) for file in of.progress_files()))
    missing = sorted(set(range(len(questions))) - done)
    before = f"; an earlier run answered {len(done)} of them" if done else ""
    workers.say(f"evaluate: {of.path}: {plural(len(questions), 'question')}{before}")
    mine = [(number, questions[number]) for number in missing[workers.rank() :: workers.size()]]
    workers.wait_for_all()  # all workers must read the files before one of them appends to a file
    try:
        finished = workers.each(lambda: keep_predictions(progress, predict(of.flags, mine, model, index), stop))
    finally:
        progress.close()
    if not all(workers.gather(finished)):
        return False
    if workers.is_first():
        conclude(of, len(questions))
    workers.wait_for_all()
    return True


def keep_predictions(progress: ProgressFile, made: Iterator[tuple[int, dict[str, Any]]], stop: Stop) -> bool:
    """Write each prediction to disk as soon as it is made. Returns False if it was interrupted."""
    for number, prediction in made:
        progress.append(number, prediction)
        if stop.requested:
            return False
    return True


def predict(
    flags: AtlasFlags, questions: list[tuple[int, Record]], model: Model, index: Index | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number of the question, {"prediction": record, "losses": losses of the prompts, "place": rank of the
    passage with the answer}).

    First all workers together retrieve all passages. Then each worker reads separately, the longest questions first.
    """
    orders = [ask(flags, model.reader_tokenizer, question) for _, question in questions]
    first = list(itertools.accumulate(map(len, orders), initial=0))
    rows = None
    if index is not None:
        queries = [order["query"] for asked_of in orders for order in asked_of]
        _, rows = retrieve(flags, model, index, queries, flags.n_context)
    by_length = sorted(range(len(questions)), key=lambda place: -len(orders[place][0]["query"]))
    together = max(1, flags.per_gpu_batch_size // max(map(len, orders), default=1))
    for start in range(0, len(by_length), together):
        batch = []
        for place in by_length[start : start + together]:
            found = [look_up(index, row) for row in rows[first[place] : first[place + 1]]] if index else None
            given = found or [given_passages(flags, questions[place][1])] * len(orders[place])
            batch.append([{**order, "passages": passages} for order, passages in zip(orders[place], given)])
        losses = iter(read(flags, model.reader, list(itertools.chain(*batch))) if model.reader else ())
        for place, predictions in zip(by_length[start:], batch):
            number, question = questions[place]
            piece: dict[str, Any] = {"losses": list(itertools.islice(losses, len(predictions)))}
            if index and "passage" in question:
                ids = [passage.get("id") for passage in predictions[0]["passages"]]
                piece["place"] = ids.index(question["passage"]) if question["passage"] in ids else -1
            for prediction in predictions if flags.dont_write_passages else ():
                del prediction["passages"]
            reduced = multiple_choice.reduce_permutations(predictions) if model.reader else predictions[0]
            yield number, {"prediction": reduced, **piece}


def ask(flags: AtlasFlags, tokenizer: Any, question: Record) -> list[dict[str, Any]]:
    """The prompts of a question, one per order of its options, in the form of predictions without results."""
    orders = multiple_choice.permutations(question, flags.multiple_choice_eval_permutations)
    return [
        {"query": multiple_choice.prompt(tokenizer, order), "answers": [order["answer"]], "metadata": order}
        for order in orders
    ]


def given_passages(flags: AtlasFlags, question: Record) -> list[dict[str, str]]:
    """The passages of a question without retrieval: those in its record, or (closed book) one empty passage."""
    return (not flags.closed_book and question["passages"][: flags.n_context]) or [NO_PASSAGE]


@torch.no_grad()
def read(flags: AtlasFlags, of: reader.Reader, predictions: list[dict[str, Any]]) -> list[float]:
    """Let the reader answer. It adds choice_logits and generation to the predictions, and returns their losses."""
    letters = LETTERS[: flags.multiple_choice_num_options]
    tokens = multiple_choice.choice_tokens(of.tokenizer, letters)
    losses: list[float] = []
    for start in range(0, len(predictions), flags.per_gpu_batch_size):
        batch = predictions[start : start + flags.per_gpu_batch_size]
        texts = [
            [flags.encoder_format.format(query=p["query"], **text_of(passage)) for passage in p["passages"]]
            for p in batch
        ]
        encoded = reader.encode(of, texts)
        targets = [multiple_choice.target(prediction["metadata"], flags.decoder_format) for prediction in batch]
        prompts = multiple_choice.decoder_prompts([p["query"] for p in batch], flags.decoder_prompt_format)
        target = reader.make_target(of, targets, flags.target_maxlength, prompts)
        places = multiple_choice.letter_places(of.tokenizer, target.labels.tolist())
        decoded = reader.decode(of, encoded, target, use_cache=True)
        logits_BTV = decoded.logits
        form = {"min_length": flags.generation_min_length, "length_penalty": flags.generation_length_penalty}
        form |= {"num_beams": flags.generation_num_beams}
        if prompts:
            written = reader.generate_after(of, encoded, prompts, flags.generation_max_length, **form)
        else:
            written = reader.generate(of, encoded, flags.generation_max_length, decoded.past_key_values, **form)
        for prediction, logits_TV, place, text in zip(batch, logits_BTV.float(), places, written):
            if not logits_TV[place, tokens].isfinite().all():
                raise UserError(
                    f"the reader's logits for {shown(prediction['query'])} are not finite (NaN or infinity); use "
                    "--precision fp32 or bf16, or another checkpoint"
                )
            prediction["generation"] = text
            prediction["choice_logits"] = dict(zip(letters, logits_TV[place, tokens].tolist()))
        losses_BT = reader.target_losses(logits_BTV, target.labels)
        losses += (losses_BT.sum(dim=1) / (target.labels != reader.IGNORED).sum(dim=1)).tolist()
    return losses


def text_of(passage: dict[str, str]) -> dict[str, str]:
    return {"title": passage["title"], "text": passage["text"]}


def conclude(of: Evaluation, count: int) -> None:
    """Merge the workers' predictions in the order of the questions, score them, and finally write the manifest."""
    metrics = Metrics()
    files = [ProgressFile(file, of.run.work, restart=True) for file in of.progress_files()]
    outputs: dict[str, Path] = {}
    if of.flags.write_results:
        with whole_file(of.result) as file:
            for piece in in_order(files, count):
                metrics.add(piece)
                file.write(dump_line(piece["prediction"]) + "\n")
        outputs = {"predictions": of.result}
    else:
        for piece in in_order(files, count):
            metrics.add(piece)
    of.run.finish(outputs, {"questions": count, **metrics.means(), "seconds": of.run.seconds})
    for file in files:
        file.close()
        file.remove()
    scores = "".join(f" | {value:.3f} {name}" for name, value in metrics.means().items())
    print(f"Dataset: {of.path.name}{scores}", flush=True)


def in_order(files: list[ProgressFile], count: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        yield next(file for file in files if number in file).read(number)


class Metrics:
    """The metrics that the reference logs, in percent.

    These are the `accuracy` of the reader's text over all permutations, the `debiased_accuracy` over the questions, and
    the mean loss. If the questions name the id of the passage with the answer (field `passage`), they also include the
    share of questions for which that passage was retrieved first (`recall@1`) or at all (`recall`).
    """

    def __init__(self) -> None:
        self.debiased: list[float] = []
        self.written: list[float] = []
        self.losses: list[float] = []
        self.places: list[int] = []

    def add(self, piece: dict[str, Any]) -> None:
        prediction = piece["prediction"]
        self.places += [piece["place"]] if "place" in piece else []
        if "permutations" not in prediction:
            return
        self.debiased.append(100.0 * (prediction["generation"] in prediction["answers"]))
        self.written += [100.0 * (one["generation"] in one["answers"]) for one in prediction["permutations"]]
        self.losses += piece["losses"]

    def means(self) -> dict[str, float]:
        found = {"debiased_accuracy": self.debiased, "accuracy": self.written, "eval_loss": self.losses}
        found["recall@1"] = [100.0 * (place == 0) for place in self.places]
        found["recall"] = [100.0 * (place >= 0) for place in self.places]
        return {name: sum(values) / len(values) for name, values in found.items() if values}
