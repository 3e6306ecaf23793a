"""The flags of ATLAS: their consequences, and the messages about flags without effect."""

from pathlib import Path

import pytest

from teacherlm.atlas.flags import read_evaluation, read_training
from teacherlm.core.errors import UserError


@pytest.fixture
def questions(tmp_path: Path) -> str:
    file = tmp_path / "questions.jsonl"
    file.touch()
    return str(file)


def words_of(questions: str, *more: str) -> list[str]:
    return ["--reader_model_type", "t5", "--train_data", questions, *more]


def test_a_flag_without_effect_is_said_even_if_it_is_zero(questions: str) -> None:
    flags = read_training("", words_of(questions, "--closed_book", "--alpha", "0", "--qa_prompt_format", "x"))
    assert flags.notes == (
        "--alpha is not used: AdamW has no alpha; the reference does not use it either",
        "--qa_prompt_format is not used: it belongs to a task other than multiple choice",
    )


def test_a_closed_book_has_one_empty_passage_and_no_retriever(questions: str) -> None:
    more = ["--closed_book", "--n_context", "7", "--train_retriever", "--query_side_retriever_training"]
    flags = read_training("", words_of(questions, *more))
    assert (flags.n_context, flags.retriever_n_context, flags.encoder_format) == (1, 1, "{query}")
    assert not (flags.retrieves or flags.train_retriever or flags.query_side_retriever_training)
    off = "--train_retriever, --query_side_retriever_training"
    assert flags.notes == (f"switched off, because --closed_book uses no retriever: {off}",)


def test_flags_of_training_are_left_out_of_an_evaluation(questions: str) -> None:
    more = ["--shuffle", "--lr", "1e-3", "--use_file_passages", "--index_mode", "faiss", "--faiss_index_type", "pq"]
    flags = read_evaluation("", words_of(questions, *more))
    assert flags.notes == ("these flags of train.py are ignored: --train_data, --shuffle, --lr",)
    assert not flags.retrieves
    assert flags.compressed == "pq"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--shard_grads", "--closed_book"], "--shard_grads also shards the optimizer states: give --shard_optim too"),
        (["--closed_book", "--retrieve_only"], "--closed_book retrieves nothing; leave out --retrieve_only"),
        (["--closed_book", "--log_freq", "0"], "--log_freq: a positive number was expected, found 0"),
        (
            [],
            "there are no passages to retrieve from: give --passages FILE ... or --load_index_path FOLDER (or --closed",
        ),
        (["--closed_book", "--eval_data", "none"], "none: no such file (--eval_data); JSON lines of questions were"),
        (["--closed_book", "--decoder_format", "{x}"], "--decoder_format: {x} is unknown; there are: {target}"),
        (["--closed_book", "--faiss_code_size", "8"], "--faiss_code_size needs --index_mode faiss"),
    ],
)
def test_flags_that_contradict_one_another_are_refused(questions: str, more: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        read_training("", words_of(questions, *more))
    assert str(error.value).startswith(said)
