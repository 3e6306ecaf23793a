"""Score a model on tasks: lm-eval's evaluator and its Hugging Face model, with the reference's tokenization."""

import logging
import sys
from pathlib import Path
from typing import Any

import torch
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from scipy.stats import binomtest
from task_api import Task

from teacherlm import loading
from teacherlm.errors import UserError

logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings are about settings that are not used here


class SeparateTokens(HFLM):
    """lm-eval's model, but context and choice are tokenized apart and without special tokens, as the reference does.

    The library tokenizes them jointly, which gives other tokens wherever a merge crosses the border.
    """

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        return (
            self.tok_encode(context, add_special_tokens=False),
            self.tok_encode(continuation, add_special_tokens=False),
        )

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm or not sys.stderr.isatty())


def load_model(folder: Path, device: str | None, dtype: str, batch_size: int) -> HFLM:
    if device is not None and device.isdigit():
        device = f"cuda:{device}"
    if device is None or (device.startswith("cuda") and not torch.cuda.is_available()):
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = loading.load_model(folder, dtype=getattr(torch, dtype)).to(device)
    return SeparateTokens(pretrained=model, tokenizer=loading.load_tokenizer(folder), batch_size=batch_size)


def score(model: HFLM, task: Task, name: str, limit: int | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Score one task; returns the result (accuracy, errors, counts) and one record a sample.

    The 95 % interval is Wilson's (1927), which holds for few samples and for accuracies near 0 and 1 too.

    Raises:
        UserError: the task has no accuracy.
    """
    if "acc" not in task.aggregation():
        raise UserError(f"the task {name} aggregates {', '.join(task.aggregation())}; acc was expected among them")
    scored = evaluator.evaluate(model, {"tasks": {name: task}, "groups": {}}, limit=limit)
    metrics = scored["results"][name]
    samples = [sample_record(sample) for sample in scored["samples"][name]]
    correct = round(sum(sample["acc"] for sample in samples))
    interval = binomtest(correct, len(samples)).proportion_ci(method="wilson")
    result = {
        "task": name,
        "metric": "acc",
        "value": metrics["acc,none"],
        "stderr": metrics["acc_stderr,none"] if len(samples) > 1 else None,
        "interval_95": [interval.low, interval.high],
        "n": len(samples),
        "correct": correct,
    }
    return result, samples


def sample_record(sample: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a sample: the prompt, the gold answer, each choice's log-likelihood, and the choice."""
    choices = [arguments[1] for arguments in sample["arguments"]]
    likelihoods = dict(zip(choices, map(float, sample["filtered_resps"])))
    return {
        "doc_id": sample["doc_id"],
        "prompt": sample["arguments"][0][0],
        "gold": str(sample["doc"].get("answer", sample["target"])).strip("() "),
        "choice": max(likelihoods, key=likelihoods.get),
        "loglikelihoods": likelihoods,
        "acc": sample["acc"],
    }
