"""Each kind of task of lm-eval 0.3 gets the numbers of the plain model: the files of old_tasks/, unchanged."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from lm_eval.api.task import ConfigurableTask
from support.old_task_scores import score
from support.programs import only_error
from support.scoring import reference_likelihoods
from transformers import AutoModelForCausalLM, AutoTokenizer

from teacherlm.core.errors import UserError
from teacherlm.core.records import write_records
from teacherlm.scoring import evaluator as scoring


def whole_text(folder: Path, text: str) -> float:
    """The log-likelihood of a text after the end-of-text token in float64: the sum over its tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]
    with torch.inference_mode():
        rows = model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
    return sum(float(row[token]) for row, token in zip(rows, ids[1:], strict=True))


def written(folder: Path, prompt: str, tokens: int) -> str:
    """The text that the model writes with greedy decoding."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    out = model.generate(ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    return tokenizer.decode(out, skip_special_tokens=True)


def values(result: dict) -> dict[str, float]:
    return {name: metric["value"] for name, metric in result["metrics"].items()}


def perplexities(likelihoods: list[float], words: list[int], sizes: list[int]) -> dict[str, float]:
    total = sum(likelihoods)
    return {
        "word_perplexity": math.exp(-total / sum(words)),
        "byte_perplexity": math.exp(-total / sum(sizes)),
        "bits_per_byte": -total / sum(sizes) / math.log(2),
    }


def test_texts_have_their_perplexities_and_a_task_counts_words_as_it_says(
    tiny_llama: Path, tmp_path: Path, inside: Callable
) -> None:
    texts = ["Bees live in hives, and hives hum. ", " Rain falls\n\nfrom clouds."]
    likelihoods = [whole_text(tiny_llama, text) for text in texts]
    plain, _ = score(inside, tiny_llama, "Corpus", tmp_path)
    # a blank at the end or the beginning makes an empty word, as re.split has it
    assert values(plain) == pytest.approx(perplexities(likelihoods, [8, 5], [35, 25]), rel=1e-5)
    vowels, _ = score(inside, tiny_llama, "CorpusByVowels", tmp_path)
    counted = [sum(text.count(vowel) for vowel in "aeiou") for text in texts]
    assert values(vowels) == pytest.approx(perplexities(likelihoods, counted, [70, 50]), rel=1e-5)
    assert plain["metric"] == "word_perplexity"


def test_pages_of_a_loading_script_are_detokenized_and_counted_as_they_came(
    tiny_llama: Path, tmp_path: Path, inside: Callable
) -> None:
    pages = ["Bees , they said , do n't sleep .", "Rain ( and snow ) fell ."]
    plain = ["Bees, they said, don't sleep.", "Rain (and snow) fell."]
    folder = tmp_path / "sets" / "pages"
    DatasetDict({"validation": Dataset.from_dict({"page": pages})}).save_to_disk(str(folder))
    result, samples = score(inside, tiny_llama, "pages", tmp_path / "out", "--datasets", tmp_path / "sets")
    likelihoods = [whole_text(tiny_llama, text) for text in plain]
    assert [sample["prompt"] for sample in samples] == plain
    words = [len(page.split()) for page in pages]
    assert values(result) == pytest.approx(perplexities(likelihoods, words, list(map(len, pages))), rel=1e-5)


def test_a_loading_script_of_the_user_s_own_is_run(tiny_llama: Path, tmp_path: Path, inside: Callable) -> None:
    folder = tmp_path / "sets" / "pages"
    folder.mkdir(parents=True)
    (folder / "pages.py").write_text(
        "import datasets\n"
        "class Pages(datasets.GeneratorBasedBuilder):\n"
        "    BUILDER_CONFIGS = [datasets.BuilderConfig(name='pages-raw', version=datasets.Version('1.0.0'))]\n"
        "    def _info(self):\n"
        "        return datasets.DatasetInfo(features=datasets.Features({'page': datasets.Value('string')}))\n"
        "    def _split_generators(self, manager):\n"
        "        return [datasets.SplitGenerator(name=datasets.Split.VALIDATION, gen_kwargs={})]\n"
        "    def _generate_examples(self):\n"
        "        yield 0, {'page': 'Bees hum .'}\n"
    )
    _, samples = score(inside, tiny_llama, "pages", tmp_path / "out", "--datasets", tmp_path / "sets")
    assert [sample["prompt"] for sample in samples] == ["Bees hum."]


def test_yes_and_no_after_examples_from_json_lines(
    tiny_llama: Path, tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "BOOTSTRAPS", 10)
    claims = [
        ("Bees hum", True),
        ("Stones sing", False),
        ("Rain is wet", True),
        ("Fire is cold", False),
        ("Ice burns", True),
    ]
    folder = tmp_path / "sets" / "judged"
    folder.mkdir(parents=True)
    for split, some in (("train", claims[:2]), ("validation", claims[2:])):
        write_records(folder / f"{split}.jsonl", [{"claim": claim, "truth": truth} for claim, truth in some])
    more = ("--num_fewshot", 2, "--datasets", tmp_path / "sets")
    result, samples = score(inside, tiny_llama, "judged", tmp_path / "out", *more)
    theirs = reference_likelihoods(tiny_llama, [sample["prompt"] for sample in samples], [" yes", " no"])
    pairs = [(truth, row[" yes"] > row[" no"]) for (_, truth), row in zip(claims[2:], theirs, strict=True)]
    count = Counter(pairs)
    tp, fp, fn, tn = (count[pair] for pair in ((True, True), (False, True), (True, False), (False, False)))
    root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    expected = {
        "acc": (tp + tn) / 3,
        "mcc": (tp * tn - fp * fn) / root if root else 0.0,
        "f1": 2 * tp / (2 * tp + fp + fn) if tp else 0.0,
    }
    assert values(result) == pytest.approx(expected)
    for sample, (claim, _) in zip(samples, claims[2:], strict=True):
        *examples, last = sample["prompt"].split("\n\n")
        assert last == f"{claim}\nQuestion: Does this make sense?\nAnswer:"
        assert set(examples) == {
            "Bees hum\nQuestion: Does this make sense?\nAnswer: yes",
            "Stones sing\nQuestion: Does this make sense?\nAnswer: no",
        }


def test_a_description_stands_before_the_question_with_a_blank_line(
    tiny_llama: Path, tmp_path: Path, inside: Callable
) -> None:
    result, samples = score(inside, tiny_llama, "examsTest-anatomy", tmp_path)
    assert samples[0]["prompt"] == "These questions are about anatomy.\n\nQ: Which organ pumps blood?\nA:"
    (row,) = reference_likelihoods(tiny_llama, [samples[0]["prompt"]], [" heart", " liver", " left lung"])
    assert samples[0]["loglikelihoods"] == pytest.approx(row, abs=1e-4)
    assert (result["task"], result["n"]) == ("examsTest-anatomy", 2)


def test_a_written_answer_is_compared_exactly(tiny_llama: Path, tmp_path: Path, inside: Callable) -> None:
    result, samples = score(inside, tiny_llama, "sums", tmp_path)
    right = []
    for sample, (a, b) in zip(samples, ((1, 2), (3, 4), (5, 6)), strict=True):
        text = re.split(r"\n| and", written(tiny_llama, f"Sum: {a} + {b} =", 6))[0]
        assert sample["answers"] == [text]
        right.append(text.strip() == str(a + b))
    assert result["metrics"]["em"]["value"] == sum(right) / 3
    assert result["metrics"]["length"]["value"] == sum(len(sample["answers"][0]) for sample in samples) / 3


def test_the_perplexity_of_a_last_word(tiny_llama: Path, tmp_path: Path, inside: Callable) -> None:
    result, samples = score(inside, tiny_llama, "last_word", tmp_path)
    rows = reference_likelihoods(tiny_llama, ["Bees fly home to their"], [" hive"])
    rows += reference_likelihoods(tiny_llama, ["After the rain came the"], [" sun"])
    likelihoods = [next(iter(row.values())) for row in rows]
    assert values(result)["ppl"] == pytest.approx(math.exp(-sum(likelihoods) / 2), rel=1e-4)
    assert [sample["ppl"] for sample in samples] == pytest.approx(likelihoods, abs=1e-4)


def test_all_answers_of_a_question_must_be_judged_rightly(tiny_llama: Path, tmp_path: Path, inside: Callable) -> None:
    result, samples = score(inside, tiny_llama, "paragraphs", tmp_path)
    labels, questions = [1, 0, 1, 1, 0], [(0, 0), (0, 0), (0, 1), (1, 0), (1, 0)]
    right: dict[tuple[int, int], list[bool]] = {}
    for sample, label, question in zip(samples, labels, questions, strict=True):
        choices = list(sample["loglikelihoods"])
        (row,) = reference_likelihoods(tiny_llama, [sample["prompt"]], choices)
        assert sample["loglikelihoods"] == pytest.approx(row, abs=1e-3)
        right.setdefault(question, []).append((row[choices[0]] > row[choices[1]]) == bool(label))
    assert values(result)["acc"] == sum(map(all, right.values())) / 3


def test_the_metrics_of_squad_are_those_of_its_answers(tiny_llama: Path, tmp_path: Path, inside: Callable) -> None:
    result, samples = score(inside, tiny_llama, "quotes", tmp_path)
    gold = [["in hives"], [""], ["clouds", "clouds"]]  # without the articles, which SQuAD drops
    exact, f1 = [], []
    for sample, texts in zip(samples, gold, strict=True):
        said = re.sub(r"[^\w\s]", "", sample["answers"][0].lower()).split()
        said = [word for word in said if word not in ("a", "an", "the")]
        exact.append(max(said == text.split() for text in texts))
        f1.append(max(overlap(said, text.split()) for text in texts))
    found = values(result)
    assert found["exact"] == pytest.approx(100 * sum(exact) / 3)
    assert found["f1"] == pytest.approx(100 * sum(f1) / 3)
    assert found["HasAns_f1"] == pytest.approx(100 * (f1[0] + f1[2]) / 2)
    assert found["NoAns_exact"] == 100 * exact[1]


def overlap(said: list[str], right: list[str]) -> float:
    same = sum((Counter(said) & Counter(right)).values())
    return 2 * same / (len(said) + len(right)) if said and right else float(said == right)


def test_translations_have_their_bleu(tiny_llama: Path, tmp_path: Path, inside: Callable) -> None:
    import sacrebleu

    result, samples = score(inside, tiny_llama, "translated", tmp_path)
    answers = [sample["answers"][0] for sample in samples]
    references = [["Bees hum in the warm sun.", "Rain falls on the old roof."]]
    assert values(result) == pytest.approx(
        {
            "bleu": sacrebleu.corpus_bleu(answers, references).score,
            "chrf": sacrebleu.corpus_chrf(answers, references).score,
            "ter": sacrebleu.corpus_ter(answers, references).score,
        }
    )


def test_the_splits_of_a_saved_data_set_are_a_task_s(tiny_llama: Path, tmp_path: Path, inside: Callable) -> None:
    doc = {"goal": "Cool the tea", "sol1": "Wait.", "sol2": "Light a fire.", "label": 0}
    splits = {"train": Dataset.from_list([doc]), "validation": Dataset.from_list([doc, {**doc, "label": 1}])}
    DatasetDict(splits).save_to_disk(str(tmp_path / "sets" / "splits"))
    result, samples = score(inside, tiny_llama, "splits", tmp_path / "out", "--datasets", tmp_path / "sets")
    choices = [" Wait.", " Light a fire."]
    (row,) = reference_likelihoods(tiny_llama, ["Goal: Cool the tea\nAnswer:"], choices)
    assert samples[0]["loglikelihoods"] == pytest.approx(row, abs=1e-3)
    assert (result["n"], result["value"]) == (2, 0.5)


def test_an_endless_word_has_no_word_perplexity_but_the_others(
    tiny_llama: Path, tmp_path: Path, inside: Callable
) -> None:
    (tmp_path / "endless.py").write_text(
        "from lm_eval.base import PerplexityTask\n"
        "class Endless(PerplexityTask):\n"
        "    def download(self, *_, **__): pass\n"
        "    def has_validation_docs(self): return False\n"
        "    def has_test_docs(self): return True\n"
        "    def test_docs(self): return ['ab' * 240]\n"
    )
    words = ["--model_args", f"pretrained={tiny_llama}", "--tasks", "endless", "--output_path", tmp_path / "out"]
    result = inside("evaluate", *words, "--include_path", tmp_path)
    assert result.returncode == 0, result.stderr
    found = values(json.loads((tmp_path / "out" / tiny_llama.name / "endless.json").read_text()))
    assert found["word_perplexity"] is None
    assert found["bits_per_byte"] > 0


GOOD = {"query": "Bees live in", "choices": ["hives", "lakes"], "gold": 0}
CHOICES = """
from lm_eval.base import MultipleChoiceTask, PerplexityTask, Task, rf
class Mine(MultipleChoiceTask):
    DOCS = {docs!r}
    def download(self, *_, **__): pass
    def has_training_docs(self): return False
    def has_validation_docs(self): return False
    def has_test_docs(self): return True
    def test_docs(self): return self.DOCS
    def doc_to_text(self, doc): return doc["query"]
"""


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"gold": 2}, "its gold is 2; the number of the right choice, 0 to 1, was expected"),
        ({"gold": -1}, "its gold is -1; "),
        ({"gold": "lakes"}, "its gold is 'lakes'; "),
        ({"gold": None}, "its gold is None; "),
        ({"gold": [0]}, "its gold is [0]; "),
        ({"gold": 0.0}, "its gold is 0.0; "),
        ({"choices": []}, "it has no choices; at least two were expected"),
        ({"choices": ["hives"]}, "it has only one choice; at least two were expected"),
        ({"choices": ["hives", ""]}, "its choice 1 is ''; a text that is not empty was expected"),
        ({"choices": ["hives", None]}, "its choice 1 is 'None'; "),
        ({"choices": ["hives", 3]}, "its choice 1 is '3'; "),
        ({"choices": "hives"}, "its choices are 'hives'; a list of texts was expected"),
        ({"choices": None}, "its choices are 'None'; "),
        ({"query": ""}, "its question is ''; doc_to_text() must return a text that is not empty"),
        ({"query": None}, "its question is 'None'; "),
        ("gold", "it has no gold (its fields: query, choices); the number of the right choice, 0 to 1, was expected"),
        ("choices", "it has no choices (its fields: query, gold); a list of texts was expected"),
        ("query", "KeyError: 'query'"),
        ("all", "it is '[1, 2]'; an object with choices and gold was expected"),
    ],
    ids=str,
)
def test_a_sample_of_a_multiple_choice_task_that_is_wrong_is_named(
    bad: object, said: str, tiny_llama: Path, tmp_path: Path, inside: Callable
) -> None:
    wrong = {**GOOD, **bad} if isinstance(bad, dict) else {k: v for k, v in GOOD.items() if k != bad}
    docs = [GOOD, wrong if bad != "all" else [1, 2], GOOD]
    error = mistake(CHOICES.format(docs=docs), tiny_llama, tmp_path, inside)
    assert f"sample 1 of mine: {said}" in error
    assert str(tmp_path / "mine.py") in error
    right = mistake(CHOICES.format(docs=[GOOD, {**GOOD, "gold": True}]), tiny_llama, tmp_path, inside, right=True)
    assert right is None  # True and False are numbers, as in tasks that ask for yes and no


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        ("PerplexityTask", "", "its text is ''; doc_to_target() must return a text that is not empty"),
        ("PerplexityTask", "doc or None", "its text is 'None'; "),
        ("Task", "rf.loglikelihood(ctx, doc)[0]", "the choice is ''; a text that is not empty was expected"),
        ("Task", "[rf.loglikelihood(ctx, 'A')[0] if doc else 7]", "construct_requests() returned '7' where a request"),
        ("Task", "rf.loglikelihood(ctx if doc else None, 'A')[0]", "the context is 'None'; a text was expected"),
        ("Task", "rf.greedy_until(doc, ['.'])", "the text is ''; a text that is not empty was expected"),
        ("Task", "rf.loglikelihood(ctx, 'AB'[1 + (not doc)])[0]", "IndexError"),
    ],
)
def test_a_sample_of_another_kind_that_is_wrong_is_named(
    kind: str, body: str, said: str, tiny_llama: Path, tmp_path: Path, inside: Callable
) -> None:
    text = CHOICES.format(docs=["Bees hum.", "", "Rain falls."]).replace("Mine(MultipleChoiceTask)", f"Mine({kind})")
    text = text.replace('doc["query"]', "'Q: ' + doc") if kind == "Task" else text.partition("    def doc_to_text")[0]
    needed = ("doc_to_target", "process_results", "aggregation", "higher_is_better") if kind == "Task" else ()
    text += "".join(f"    def {name}(self, *_): return {{}}\n" for name in needed)
    method = "construct_requests(self, doc, ctx)" if kind == "Task" else "doc_to_target(self, doc)"
    text += f"    def {method}: return {body or 'doc'}\n"
    error = mistake(text, tiny_llama, tmp_path, inside)
    assert f"sample 1 of mine: {said}" in error
    assert str(tmp_path / "mine.py") in error


def mistake(text: str, model: Path, folder: Path, inside: Callable, right: bool = False) -> str | None:
    """The line on stderr about a task file. None if the file is scored; then nothing is on stderr."""
    (folder / "mine.py").write_text(text)
    words = ["--model_args", f"pretrained={model}", "--tasks", "mine", "--output_path", folder / "out"]
    result = inside("evaluate", *words, "--include_path", folder)
    if right:
        assert result.returncode == 0, result.stderr
        return None
    assert not list((folder / "out").rglob("mine.json"))
    return only_error(result)


@pytest.mark.parametrize(("gold", "said"), [(2, "'2'"), (-1, "'-1'"), ("lakes", "'lakes'"), ([0, 5], "'5'")], ids=str)
def test_lm_eval_s_own_tasks_do_not_count_a_gold_that_is_no_choice_as_a_wrong_answer(gold: object, said: str) -> None:
    for last in (0, gold):
        docs = Dataset.from_list([{"q": "Bees live in", "choices": ["hives", "seas"], "last": row} for row in (0, 1)])
        task = ConfigurableTask(
            config={
                "task": "mine", "output_type": "multiple_choice", "test_split": "test", "doc_to_text": "q",
                "doc_to_choice": "choices", "doc_to_target": lambda doc, last=last: last if doc["last"] else 0,
                "custom_dataset": lambda docs=docs, **_: {"test": docs},
            }
        )  # fmt: skip
        if last == 0:
            scoring.require_golds(task, "mine", None)
        else:
            with pytest.raises(UserError, match=f"the task mine, sample 1: the right choice is {said}"):
                scoring.require_golds(task, "mine", None)
