"""Several training sets: their order, weights, samples that are left out, and where each sample comes from."""

import json
from pathlib import Path

import pytest
from datasets import Dataset, Features, Value, load_from_disk
from hypothesis import given
from hypothesis import strategies as st

from teacherlm.core.errors import UserError
from teacherlm.finetune.sets import TrainingSet, choose_epoch, join_sets, parse_sets


def test_the_sets_of_a_text(tmp_path: Path) -> None:
    assert parse_sets("a/A") == [TrainingSet(Path("a/A"))]
    assert parse_sets("a/A:1,b/B:0.5,c/C:max20,d") == [
        TrainingSet(Path("a/A")),
        TrainingSet(Path("b/B"), 0.5),
        TrainingSet(Path("c/C"), most=20),
        TrainingSet(Path("d")),
    ]
    for name in ("x,y", "x:2", "x,y:0.5"):
        (tmp_path / name).mkdir()
        assert parse_sets(str(tmp_path / name)) == [TrainingSet(tmp_path / name)]
    assert parse_sets(f"{tmp_path / 'x:2'}:3") == [TrainingSet(tmp_path / "x:2", 3)]
    assert parse_sets(".") == [TrainingSet(Path())]


@pytest.mark.parametrize(
    "text", ["a:0", "a:x", "a,b:-1", "a,,b", "a,", "a:max0", "a:max", "a,a", "a,./a:2", "a:nan", "a:1e3", ":1", "a:0.0"]
)
def test_a_text_that_names_no_sets_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--dataset_name"):
        parse_sets(text)


@given(st.integers(1, 60), st.floats(0.02, 4), st.integers(0, 5))
def test_an_epoch_has_each_sample_as_often_as_the_weight_says(count: int, weight: float, seed: int) -> None:
    weight = round(weight, 3)
    samples = [3 * number for number in range(count)]
    epoch = TrainingSet(Path("a"), weight).epoch(samples, seed)
    times = [epoch.count(sample) for sample in samples]
    assert sum(times) == len(epoch) == int(weight) * count + round((weight % 1) * count)
    assert set(times) <= {int(weight), int(weight) + 1}
    assert epoch == TrainingSet(Path("b"), weight).epoch(samples, seed)


@given(st.integers(1, 60), st.integers(1, 80), st.integers(0, 5))
def test_an_epoch_has_at_most_the_maximum(count: int, most: int, seed: int) -> None:
    epoch = TrainingSet(Path("a"), most=most).epoch(range(count), seed)
    assert len(epoch) == len(set(epoch)) == min(count, most) and set(epoch) <= set(range(count))
    assert epoch == sorted(epoch)


def text(question: str, letter: str = "A") -> str:
    return f"Q: {question} (A) yes (B) no A: The answer is ({letter})."


def rows(*texts: str) -> Dataset:
    return Dataset.from_dict({"text": texts, "cot_tail": [f"{one} Because." for one in texts], "other": texts})


def joined(*sets: tuple[TrainingSet, Dataset]) -> object:
    return join_sets([one for one, _ in sets], [dataset for _, dataset in sets], ["cot_tail"])


A, B, C = (TrainingSet(Path(f"x/{name}")) for name in "ABC")


def test_a_question_of_an_earlier_set_is_left_out() -> None:
    first = rows(text("Is it?"), text("Is it?"), text("Was it?"))
    second = rows(text("is it"), text("Will it?"), text("Was it?", "B"), text("Will it?"))
    third = rows(text("Will it!"), text("Has it?"))
    found = choose_epoch(joined((A, first), (B, second), (C, third)), ["cot_tail"], 0, [], False)
    assert found.dataset.column_names == ["text", "cot_tail"]
    assert found.repeated == (
        {"sample": 4, "why": "question", "of": 1, "left_out": True},
        {"sample": 6, "why": "question", "of": 3, "left_out": True, "answers": ["A", "B"]},
        {"sample": 8, "why": "question", "of": 5, "left_out": True},
    )
    assert found.pool == [0, 1, 2, 4, 6, 8]
    assert [found.where(row) for row in (0, 2, 3, 8)] == [
        *("x/A, sample 1", "x/A, sample 3", "x/B, sample 1", "x/C, sample 2")
    ]
    assert found.described()[1] == {
        **{"set": "B", "share": "1", "first": 4, "rows": 4, "left_out": 2, "samples_per_epoch": 2}
    }
    assert found.findings == "left out: 3 samples with a question of an earlier set, 1 of them with another answer"


def test_a_set_without_its_own_questions_is_refused() -> None:
    same = rows(text("Is it?"))
    with pytest.raises(UserError, match=r"x/B: an epoch would have no sample of this set \(all are left out\); leave"):
        choose_epoch(joined((A, same), (B, same)), ["cot_tail"], 0, [], False)
    with pytest.raises(UserError, match=r"of this set \(its share is 0\.1 of 2 samples\)"):
        small = TrainingSet(Path("x/B"), 0.1)
        choose_epoch(joined((A, same), (small, rows("a", "b"))), ["cot_tail"], 0, [], False)


def test_one_set_alone_stays_as_it_is() -> None:
    both = rows(text("Is it?"), text("Is it?"))
    found = choose_epoch(joined((A, both)), ["cot_tail"], 0, [], False)
    assert found.pool is None and found.repeated == () and found.where(1) == "sample 2"


def test_samples_with_several_texts_are_left_out_whole() -> None:
    first = rows(text("Is it?"), text("Is it?"), text("Was it?"))
    second = rows(text("Was it?"), text("Was it?"), text("Will it?"), text("Will it?"))
    both = joined((A, first), (B, second))
    grouped = type(both)(both.dataset, both.sets, both.starts, [range(2), range(2, 3), range(3, 5), range(5, 7)])
    found = choose_epoch(grouped, ["cot_tail"], 0, [], False)
    assert [one["sample"] for one in found.repeated] == [4]
    assert found.pool == [0, 1, 3]
    assert [one["samples_per_epoch"] for one in found.described()] == [2, 1]


def test_parts_of_some_sets_are_kept() -> None:
    with_parts = rows("a", "b").add_column("parts", [json.dumps({"cot_tail": []})] * 2)
    found = joined((A, rows("c")), (B, with_parts))
    assert found.dataset["parts"][:] == ["", '{"cot_tail": []}', '{"cot_tail": []}']


def test_texts_of_different_types_are_joined(tmp_path: Path) -> None:
    first, second = rows("a"), rows("b")
    first.save_to_disk(str(tmp_path / "A"))
    large = second.cast(Features(dict.fromkeys(second.features, Value("large_string"))))
    large.save_to_disk(str(tmp_path / "B"))
    before = [sorted(path.rglob("*")) for path in (tmp_path / "A", tmp_path / "B")]
    found = joined((A, load_from_disk(str(tmp_path / "A"))), (B, load_from_disk(str(tmp_path / "B"))))
    assert found.dataset["text"][:] == ["a", "b"]
    assert [sorted(path.rglob("*")) for path in (tmp_path / "A", tmp_path / "B")] == before


def test_samples_with_a_piece_of_a_test_set(prepared: Path) -> None:
    from teacherlm.core.saved_datasets import load_saved

    tests = prepared / "tests" / "sample"
    asked = load_saved(tests)[3]
    claim = asked.get("origin_sentence", asked.get("sentence"))
    assert len(claim.split()) >= 5
    mine = rows(text("A sentence that no test set has, not even a small one?"), text(f"{claim} Is that so?"))
    for drop in (False, True):
        found = choose_epoch(joined((A, mine)), ["cot_tail"], 0, [tests], drop)
        assert [(one["sample"], one["test_set"], one["question"], one["left_out"]) for one in found.repeated] == [
            (2, "sample", 3, drop)
        ]
        assert found.pool == ([0] if drop else None)
        done = "left out" if drop else "trained on"
        assert found.findings == f"{done}: 1 sample with a piece of the test set sample"
    with pytest.raises(UserError, match=r"no such test set; data_prepare\.py makes it"):
        choose_epoch(joined((A, mine)), ["cot_tail"], 0, [prepared / "tests" / "other"], False)
