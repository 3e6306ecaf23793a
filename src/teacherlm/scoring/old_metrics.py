"""`datasets.load_metric`, which the library no longer has, for tasks of lm-eval 0.3.

Installed libraries compute the common metrics without the hub. The `evaluate` library loads all other metrics, which it
fetches from the hub.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import sacrebleu
from lm_eval.api.metrics import exact_match_hf_evaluate
from rouge_score import rouge_scorer, scoring
from sklearn import metrics
from transformers.data.metrics import squad_metrics

from teacherlm.core.errors import UserError, reason


class Metric:
    """One metric, with the interface of `datasets.Metric`."""

    def __init__(self, compute: Callable[..., dict[str, Any]]):
        self.formula = compute
        self.pairs: list[tuple[Any, Any]] = []

    def add(self, *, prediction: Any, reference: Any) -> None:
        self.pairs.append((prediction, reference))

    def add_batch(self, *, predictions: Sequence[Any], references: Sequence[Any]) -> None:
        self.pairs += zip(predictions, references, strict=True)

    def compute(
        self, *, predictions: Sequence[Any] | None = None, references: Sequence[Any] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The metric over all pairs that were added, including these. Afterwards the list of pairs is empty."""
        if predictions is not None and references is not None:
            self.add_batch(predictions=predictions, references=references)
        pairs, self.pairs = self.pairs, []
        return self.formula([one for one, _ in pairs], [other for _, other in pairs], **kwargs)


def load_metric(path: str, config_name: str | None = None, **_: Any) -> Any:
    """The metric of a name.

    Raises:
        UserError: the metric is not one of METRICS, and the `evaluate` library cannot load it or would run a script
            in the current folder instead.
    """
    if path in METRICS:
        return Metric(METRICS[path])
    script = Path(path) if path.endswith(".py") else Path(path) / f"{Path(path).name}.py"
    if script.is_file() and not path.startswith((".", "/")):
        raise UserError(
            f"datasets.load_metric({path!r}): the evaluate library would run {script.absolute()}, which is in the "
            f"current folder; move that file away, or ask for './{path}' if you mean it"
        )
    import evaluate

    try:
        return evaluate.load(path, config_name)
    except Exception as error:  # from the hub, the network or the metric's requirements
        raise UserError(
            f"datasets.load_metric({path!r}): there are {', '.join(sorted(METRICS))}; the evaluate library's metric of "
            f"that name cannot be loaded ({reason(error)})"
        ) from error


def accuracy(predictions: Sequence[Any], references: Sequence[Any], **kwargs: Any) -> dict[str, Any]:
    return {"accuracy": float(metrics.accuracy_score(references, predictions, **kwargs))}


def f1(predictions: Sequence[Any], references: Sequence[Any], **kwargs: Any) -> dict[str, Any]:
    found = metrics.f1_score(references, predictions, **kwargs)
    return {"f1": float(found) if found.size == 1 else found}


def matthews(predictions: Sequence[Any], references: Sequence[Any], **kwargs: Any) -> dict[str, Any]:
    return {"matthews_correlation": float(metrics.matthews_corrcoef(references, predictions, **kwargs))}


def exact_match(predictions: Sequence[str], references: Sequence[str], **kwargs: Any) -> dict[str, Any]:
    """The exact match in percent, as in `datasets`."""
    found = exact_match_hf_evaluate(predictions=predictions, references=references, **kwargs)
    return {"exact_match": 100 * float(found["exact_match"])}


def sacre_bleu(predictions: Sequence[str], references: Sequence[Sequence[str]], **kwargs: Any) -> dict[str, Any]:
    found = sacrebleu.corpus_bleu(predictions, [list(one) for one in zip(*references, strict=True)], **kwargs)
    return {
        name: getattr(found, name) for name in ("score", "counts", "totals", "precisions", "bp", "sys_len", "ref_len")
    }


def rouge(
    predictions: Sequence[str],
    references: Sequence[str],
    rouge_types: Sequence[str] = ("rouge1", "rouge2", "rougeL", "rougeLsum"),
    use_stemmer: bool = False,
    use_aggregator: bool = True,
) -> dict[str, Any]:
    scorer = rouge_scorer.RougeScorer(rouge_types=rouge_types, use_stemmer=use_stemmer)
    scores = [scorer.score(reference, prediction) for prediction, reference in zip(predictions, references)]
    if not use_aggregator:
        return {kind: [score[kind] for score in scores] for kind in rouge_types}
    together = scoring.BootstrapAggregator()
    for score in scores:
        together.add_scores(score)
    return together.aggregate()


def squad(predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """SQuAD 1: for each question the best value over its gold answers, in percent."""
    given = {one["id"]: one["prediction_text"] for one in predictions}
    best = {
        name: [max(score(text, given.get(one["id"], "")) for text in one["answers"]["text"]) for one in references]
        for name, score in (("exact_match", squad_metrics.compute_exact), ("f1", squad_metrics.compute_f1))
    }
    return {name: 100 * sum(scores) / len(scores) for name, scores in best.items()}


def squad_v2(
    predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]], no_answer_threshold: float = 1.0
) -> dict[str, Any]:
    """SQuAD 2, in percent. It includes questions without an answer, whose `answers` are empty."""
    examples = [
        SimpleNamespace(qas_id=one["id"], answers=[{"text": text} for text in one["answers"]["text"]])
        for one in references
    ]
    texts = {one["id"]: one["prediction_text"] for one in predictions}
    doubts = {one["id"]: one["no_answer_probability"] for one in predictions}
    return squad_metrics.squad_evaluate(examples, texts, doubts, no_answer_threshold)


METRICS: dict[str, Callable[..., dict[str, Any]]] = {
    "accuracy": accuracy,
    "exact_match": exact_match,
    "f1": f1,
    "matthews_correlation": matthews,
    "rouge": rouge,
    "sacrebleu": sacre_bleu,
    "squad": squad,
    "squad_v2": squad_v2,
}
