"""Which names of variables are taken for mistakes, and which near name is meant."""

import pytest

from teacherlm.chain.variables import complaint, edits, misspelt


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("STUDNET", "did you mean STUDENT?"),
        ("student", "did you mean STUDENT?"),
        ("CREAK_DTA", "did you mean CREAK_DATA?"),
        ("TEACHER_COTT", "did you mean TEACHER_COT?"),
        ("COLOUR", "to hand it on to a program, put it first: COLOUR=... make"),
    ],
)
def test_a_variable_that_nothing_reads_is_said_with_the_near_one(name: str, said: str) -> None:
    expected = f"nothing reads a variable {name}; {said} (docs/reference/variables.md lists them)"
    assert complaint(["STUDENT", name]) == expected


def test_variables_of_chains_libraries_and_make_are_accepted() -> None:
    of_chains = [
        "STUDENT",
        "CREAK_DATA",
        "STRATEGY_QA_DATA",
        "CONTAINER",
        "TEACHER_REASON",
        "TEACHER_OWN_KIND",
        "DATA_DIR",
        "OPEN",
    ]
    of_others = ["HF_TOKEN", "CUDA_VISIBLE_DEVICES", "WANDB_MODE", "MAKEFLAGS", "V", "CFLAGS", "https_proxy"]
    assert complaint(of_chains + of_others) is None


def test_only_long_names_one_edit_away_count_in_an_environment() -> None:
    odd = dict.fromkeys(("STUDNET", "CFLAGS", "MODE", "TASKS", "SITES", "RUN_ID", "LINES", "USER", "EPOCH_SECONDS"), "")
    assert misspelt(odd) == {"STUDNET": "STUDENT"}
    assert misspelt({**odd, "STUDENT": "x"}) == {}  # what was meant is set
    assert misspelt({"TEACHR_COT": "a", "TEACHER_ERROR": "b"}) == {"TEACHR_COT": "TEACHER_COT"}
    others = misspelt({"TEMPERTURE": "1", "DRYRUN": "1", "EPOCH": "3"})
    assert others == {"TEMPERTURE": "TEMPERATURE", "DRYRUN": "DRY_RUN", "EPOCH": "EPOCHS"}


@pytest.mark.parametrize(
    ("one", "other", "count"),
    [("STUDENT", "STUDNET", 1), ("RUNS", "RUN", 1), ("A", "B", 1), ("", "AB", 2), ("EPOCHS", "EPHOCS", 2)],
)
def test_edits_are_counted(one: str, other: str, count: int) -> None:
    assert edits(one, other) == edits(other, one) == count
