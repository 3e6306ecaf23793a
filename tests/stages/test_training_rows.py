"""The control fields: each sample's explanations go to another sample with the same right answer."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from support.enhancing import prompts
from support.files import read_lines
from support.programs import only_error

from teacherlm.catalog.prompt_sets import PromptSet, load_prompts
from teacherlm.dataset.training_rows import circles

RECORDS = 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Enhanced files of two kinds; record N has N % 3 + 1 chains of thought, and one text on mistakes."""
    records = read_lines(prompts(tmp_path / "SAMPLE.jsonl", RECORDS))
    cots, errors = [], []
    for number, record in enumerate(records):
        texts = [f" Cot {number}, {index}." for index in range(number % 3 + 1)]
        cots.append({**record, "cot": texts[0], "all": record["cot_text"] + texts[0], "cot_completions": texts})
        errors.append({**record, "error": f" Error {number}.", "all": f"{record['error_text']} Error {number}."})
    for kind, lines in (("cot", cots), ("error", errors)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"SAMPLE_{kind}.jsonl").write_text(text)
    return tmp_path


def dataset(folder: Path, inside: Callable, *more: object, name: str = "SAMPLE") -> list[dict[str, Any]]:
    words = ["--benchmark", "sample", "--output_dir", folder, "--test_dir", folder / "tests", "--post_process"]
    done = inside("data_prepare", *words, *more)
    assert done.returncode == 0, done.stderr
    return datasets.load_from_disk(str(folder / name)).to_list()


def letter(row: dict[str, Any]) -> str:
    return row["text"][-3]


def number_in(text: str, word: str) -> int:
    return int(text.rpartition(f"{word} ")[2].partition(",")[0].rstrip("."))


def test_every_explanation_goes_to_another_sample_with_the_same_answer(folder: Path, inside: Callable) -> None:
    rows = dataset(folder, inside)
    partners = [number_in(row["cot_shuffled"], "Cot") for row in rows]
    assert sorted(partners) == list(range(RECORDS))
    for number, (row, partner) in enumerate(zip(rows, partners)):
        assert partner != number and letter(rows[partner]) == letter(row)
        assert row["cot_shuffled"] == row["cot_tail"].replace(f"Cot {number}, 0.", f"Cot {partner}, 0.")
        assert row["error_shuffled"] == row["error_tail"].replace(f"Error {number}.", f"Error {partner}.")


def test_the_seed_chooses_and_nothing_else(folder: Path, inside: Callable) -> None:
    first = dataset(folder, inside)
    other = dataset(folder, inside, "--seed", 1)
    again = dataset(folder, inside)
    assert first == again
    same = sum(one["cot_shuffled"] == two["cot_shuffled"] for one, two in zip(first, other))
    assert same < RECORDS / 2
    assert [row["cot_tail"] for row in first] == [row["cot_tail"] for row in other]


def test_the_rows_of_a_sample_have_the_texts_of_one_other_sample(folder: Path, inside: Callable) -> None:
    rows = dataset(folder, inside, "--explanations", "all", name="SAMPLE_all")
    partners: dict[int, set[int]] = {}
    for row in rows:
        partner = number_in(row["cot_shuffled"], "Cot")
        partners.setdefault(row["sample_number"] - 1, set()).add(partner)
        text = int(row["cot_shuffled"].rpartition(", ")[2].rstrip("."))
        assert text == (row["text_number"] - 1) % (partner % 3 + 1)
        assert number_in(row["error_shuffled"], "Error") == partner
    assert all(len(found) == 1 and sample not in found for sample, found in partners.items())


def test_what_a_filter_drops_is_no_other_sample_s_either(folder: Path, inside: Callable) -> None:
    file = folder / "SAMPLE_cot.jsonl"
    records = read_lines(file)
    for record in records[::3]:
        text = f"{record['cot'][:-1]} and"
        record |= {"cot": text, "all": record["cot_text"] + text, "cot_completions": [text]}
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = dataset(folder, inside, "--filter", "cut", name="SAMPLE_without-cut")
    assert len(rows) == RECORDS - len(records[::3])
    assert Counter(row["cot_shuffled"].rpartition("step.")[2] for row in rows) == Counter(
        row["cot_tail"].rpartition("step.")[2] for row in rows
    )


def test_a_sample_alone_with_its_answer_has_no_control(folder: Path, inside: Callable, tiny_llama: Path) -> None:
    for kind in ("cot", "error"):
        file = folder / f"SAMPLE_{kind}.jsonl"
        records = read_lines(file)
        one = next(record for record in records if letter(record) == "B")
        kept = [*[record for record in records if letter(record) == "A"][:3], one]
        file.write_text("".join(json.dumps(record) + "\n" for record in kept))
    rows = dataset(folder, inside)
    assert [row["cot_shuffled"] is None for row in rows] == [False, False, False, True]
    words = ["--model_name_or_path", tiny_llama, "--dataset_name", folder / "SAMPLE", "--task_type", "cot_shuffled"]
    done = inside("finetune", *words, "--output_dir", folder / "run")
    assert done.returncode == 2
    assert "sample 4: the field 'cot_shuffled' is empty: no other sample has its right answer" in done.stderr


def test_circles_have_no_fixed_points() -> None:
    letters = np.random.default_rng(0).integers(65, 70, 1000)
    for seed in range(20):
        partners = circles(letters, seed)
        assert sorted(partners) == list(range(1000))
        assert (partners != np.arange(1000)).all() and (letters[partners] == letters).all()
    assert circles(np.array([65, 66, 65]), 0).tolist() == [2, -1, 0]


def test_parts_are_those_of_the_template(folder: Path, inside: Callable) -> None:
    """In each field, the letter is in the answer, the explanation in the explanation, and the rest is known too."""
    for number, row in enumerate(dataset(folder, inside)):
        parts = json.loads(row["parts"])
        assert set(parts) == {
            *("text", "cot_tail", "cot_first", "error_tail", "error_first", "cot_shuffled", "error_shuffled")
        }
        for field, spans in parts.items():
            starts = [0, *(end for _, end in spans[:-1])]
            found = [(part, row[field][start:end]) for (part, end), start in zip(spans, starts)]
            question = row["text"][: -len("The answer is (B).")] + (
                "" if field.endswith("_first") else "The answer is ("
            )
            assert found[0] == ("question", question)
            assert ("answer", f"{letter(row)}).") in found
            if field in ("cot_tail", "cot_first"):
                assert any(part == "explanation" and f"Cot {number}, 0." in text for part, text in found)
            assert "".join(text for _, text in found) == row[field]


@pytest.mark.parametrize("name", ["teacherlm", "instruct", "reason_first"])
def test_parts_of_odd_texts(name: str) -> None:
    """Blanks that are cleaned, an explanation that repeats the question, and one that is empty."""
    prompts = load_prompts(name)
    record = {"text": "On  x. Q: Is  it (A) so? (A) yes (B) no A: The answer is (B)."}
    record |= {f"{kind}_text": prompts.cleaned(f"{record['text']} Go on:") for kind in prompts.kinds}
    for text in (" It  is. ", f" {record['text']}", "", " ", "The answer is (A).", "\ufdd0x"):
        made = prompts.training_texts(record, dict.fromkeys(prompts.kinds, text), "")
        parts = json.loads(made["parts"])
        for field, plain in made.items():
            if field == "parts":
                continue
            if "\ufdd0" in text:
                assert field not in parts
                continue
            spans = parts[field]
            assert spans[-1][1] == len(plain)
            words = [plain[start:end] for start, (_, end) in zip([0, *(end for _, end in spans)], spans)]
            kinds = [kind for kind, _ in spans]
            assert [word for kind, word in zip(kinds, words) if kind == "answer"] == ["B)."]
            assert kinds[0] == "question" and plain.startswith(words[0])
            if core := prompts.cleaned(text.strip()):
                assert any(core in word for kind, word in zip(kinds, words) if kind == "explanation")


def own_prompts(folder: Path, text: str) -> PromptSet:
    (folder / "own.yaml").write_text(text)
    return load_prompts(str(folder / "own.yaml"))


def test_a_template_that_computes_with_the_letter_has_no_parts(tmp_path: Path) -> None:
    tail = "{{ text }} That is {{ {'A': 'the first', 'B': 'the second'}[letter] }} one. {{ explanation | trim }}"
    prompts = own_prompts(tmp_path, f'kinds: {{why: {{prompt: "{{{{ text }}}} Why?", tail: "{tail}"}}}}')
    record = {"text": "Q: So? (A) yes (B) no A: The answer is (B).", "why_text": "Why?"}
    made = prompts.training_texts(record, {"why": "It is."}, "")
    assert made["why_tail"] == f"{record['text']} That is the second one. It is."
    assert set(json.loads(made["parts"])) == {"text", "why_first"}
    assert prompts.digest() == prompts.digest()


def test_the_answer_is_that_of_the_sample_and_not_one_in_its_words(tmp_path: Path) -> None:
    prompt = "{{ text }} Reply in the form A: The answer is (X)."
    prompts = own_prompts(
        tmp_path, f'kinds: {{why: {{prompt: "{prompt}", tail: "{{{{ prompt }}}} {{{{ explanation }}}}"}}}}'
    )
    text = "Q: They said: A: The answer is (A). So? (A) yes (B) no A: The answer is (B)."
    record = {"text": text, "why_text": f"{text} Reply in the form A: The answer is (X)."}
    parts = json.loads(prompts.training_texts(record, {"why": "It is."}, "")["parts"])
    answer = ["answer", len(text)]
    assert parts["text"] == [["question", len(text) - 3], answer]
    assert parts["why_tail"][:2] == [["question", len(text) - 3], answer]


def test_a_control_never_has_the_own_explanation(tmp_path: Path) -> None:
    tail = "{{ text }} {{ sample.why }}"
    prompts = own_prompts(tmp_path, f'kinds: {{why: {{prompt: "{{{{ text }}}} Why?", tail: "{tail}"}}}}')
    record = {"text": "Q: So? (A) yes (B) no A: The answer is (B).", "why_text": "Why?", "why": "Own."}
    made = prompts.training_texts(record, {"why": "Own."}, "")
    control = prompts.shuffled_texts({**record, **made}, {"why": "Other."}, "")
    assert made["why_tail"].endswith("Own.") and control["why_shuffled"].endswith("Other.")


def test_a_template_may_read_the_sample_s_own_fields(tmp_path: Path) -> None:
    """The digest of a set is computed without a sample."""
    first = own_prompts(tmp_path, 'kinds: {why: {prompt: "{{ sample.evidence }} {{ text }} Why?"}}').digest()
    second = own_prompts(tmp_path, 'kinds: {why: {prompt: "{{ sample.evidence }} {{ text }} How?"}}').digest()
    assert first["sha256"] != second["sha256"]


def test_fields_that_are_made_here_are_no_others(folder: Path, inside: Callable) -> None:
    file = folder / "SAMPLE_cot.jsonl"
    records = [{**record, "cot_shuffled": "mine"} for record in read_lines(file)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    words = ["--benchmark", "sample", "--output_dir", folder, "--test_dir", folder / "tests", "--post_process"]
    assert "the field 'cot_shuffled' is already there" in only_error(inside("data_prepare", *words))
