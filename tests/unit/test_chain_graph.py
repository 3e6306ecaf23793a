"""The chain as a graph: its stages with their inputs, outputs, tasks and commands, and its paths."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from teacherlm.atlas.experiment import DataFolder
from teacherlm.chain.atlas_graph import atlas_graph, checksum
from teacherlm.chain.facts import Facts, ModelFacts
from teacherlm.chain.graph import Graph, Stage, missing_indices
from teacherlm.chain.job_list import Job
from teacherlm.chain.layout import ChainFolder, run_folder, submitted_chains
from teacherlm.chain.sample_graph import layout_of, sample_graph
from teacherlm.chain.settings import AtlasSettings, Settings, read_atlas_settings, read_settings, saved_variables
from teacherlm.chain.site import ARGUMENTS, Site
from teacherlm.chain.steer import count_progress, read_tasks, state_of
from teacherlm.core.errors import UserError
from teacherlm.report.unfinished import failed_jobs
from teacherlm.runtime.launcher import Command

VALUES = {"enhance.num_tokens": "2048", "finetune.batch": "8", "finetune.accumulation": "1"}
VALUES |= {"finetune.learning_rate": "6e-06", "finetune.gradient_checkpointing": "true"}
ASKED = {stage: ["--nodes=1", f"--gres=gpu:{stage}"] for stage in ("enhance", "finetune", "evaluate")}
MODEL = ModelFacts("tiny", VALUES, ASKED, {"enhance": 2, "finetune": 8, "evaluate": 1})
BIG = dataclasses.replace(MODEL, name="big")
FACTS = Facts(
    {"creak": "CREAK", "ecqa": "ECQA", "mmlu": "MMLU"},
    MODEL,
    {name: dataclasses.replace(MODEL, name=name) for name in ("big", "a", "b", "c", "long" * 50)},
)
SITE = Site({**{name: [f"--{name}"] for name in ARGUMENTS}}, {"PARTITION": "gpus", "CPU_PARTITION": "cpus"})


def settings(**variables: str) -> Settings:
    return read_settings("creak", {"STUDENT": "tiny", "TEACHER": "big", **variables})


def graph(**variables: str) -> Graph:
    return sample_graph(settings(**variables), FACTS)


def words(stage: Stage, index: int | None = None, more: tuple[str, ...] = ()) -> list[list[str]]:
    """The words of a task's commands, after those that start the program."""
    return [list(command.words[2:]) for command in stage.commands(index, more)]


def flag(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_the_stages_and_what_each_waits_for() -> None:
    assert [stage.name for stage in graph().stages] == ["prepare", "enhance", "merge", "finetune", "evaluate", "report"]
    assert [stage.name for stage in graph(TASK="text").stages] == ["prepare", "finetune", "evaluate", "report"]
    asked = graph(SHARDS="3", EPOCHS="2")
    assert {stage.name: list(stage.indices) for stage in asked.stages if stage.array} == {
        "enhance": [0, 1, 2],
        "evaluate": [0, 1, 2],
    }
    assert {stage.name: stage.needs for stage in asked.stages if stage.needs} == {
        "enhance": ("big",),
        "finetune": ("tiny",),
        "evaluate": ("tiny",),
    }


def test_a_stage_reads_what_the_one_before_makes() -> None:
    asked = graph(SHARDS="2", FILTER="cut,empty", TASK="full_tail")
    [prepare] = words(asked.stage("prepare"))
    [enhance] = words(asked.stage("enhance"), 1)
    *merges, post_process = words(asked.stage("merge"))
    [finetune] = [list(command.words) for command in asked.stage("finetune").commands(None, [])]
    [evaluate] = words(asked.stage("evaluate"))
    run = "runs/creak/all"
    assert flag(prepare, "--output_dir") == f"{run}/prepare"
    assert flag(enhance, "--input") == f"{run}/prepare/CREAK.jsonl"
    assert flag(enhance, "--output") == f"{run}/enhance/big_seed0/CREAK_{{kind}}.jsonl"
    assert flag(enhance, "--task_type") == "cot_text,error_text,fundamental_text"
    assert flag(enhance, "--shard") == "1/2"
    assert [flag(merge, "--output") for merge in merges] == [
        f"{run}/enhance/big_seed0/CREAK_{kind}.jsonl" for kind in ("cot", "error", "fundamental")
    ]
    assert flag(post_process, "--filter") == "cut,empty"
    name = "tiny_full_tail_big_without-cut-empty_seed0"
    start = finetune.index("finetune-here") + 1
    assert finetune[start : start + 2] == ["tiny", f"{run}/enhance/big_seed0/CREAK_without-cut-empty"]
    assert finetune[start + 6 : start + 9] == ["full_tail", name, f"{run}/finetune"]
    assert flag(evaluate, "--datasets") == flag(prepare, "--test_dir") == f"{run}/prepare/test"
    assert flag(evaluate, "--checkpoints") == f"{run}/finetune/{name}"


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "tiny_cot_tail_big_seed0"),
        ({"TASK": "text"}, "tiny_text_seed0"),
        ({"TASK": "text:1,cot_tail:2"}, "tiny_text-1-cot_tail-2_big_seed0"),
        ({"BATCH": "4", "LEARNING_RATE": "1e-3", "SEED": "7"}, "tiny_cot_tail_big_batch4_lr1e-3_seed7"),
        ({"ACCUMULATION": "2", "FILTER": "cut"}, "tiny_cot_tail_big_without-cut_accumulation2_seed0"),
        ({"NUM_COMPLETIONS": "4"}, "tiny_cot_tail_big_4texts_seed0"),
        ({"NUM_COMPLETIONS": "4", "TASK": "text"}, "tiny_text_seed0"),
        (
            {"NUM_COMPLETIONS": "4", "EXPLANATIONS": "all", "FILTER": "cut"},
            "tiny_cot_tail_big_4texts_all_without-cut_seed0",
        ),
        ({"NUM_COMPLETIONS": "4", "EXPLANATIONS": "each_epoch"}, "tiny_cot_tail_big_4texts_each_epoch_seed0"),
        ({"NUM_COMPLETIONS": "4", "EXPLANATIONS": "best"}, "tiny_cot_tail_big_4texts_best_tiny_seed0"),
    ],
)
def test_a_name_tells_what_a_run_depends_on(variables: dict[str, str], name: str) -> None:
    assert graph(**variables).name == name


def test_several_explanations_are_asked_for_scored_and_chosen() -> None:
    asked = graph(NUM_COMPLETIONS="4", EXPLANATIONS="best", SCORER="teacher", TASK="full_tail", SHARDS="2")
    made = "runs/creak/all/enhance/big_4texts_seed0"
    [enhance] = words(asked.stage("enhance"), 1)
    assert flag(enhance, "--num_completions") == "4" and flag(enhance, "--output") == f"{made}/CREAK_{{kind}}.jsonl"
    merge = asked.stage("merge")
    *merges, cot, error, fundamental, post_process = words(merge)
    assert len(merges) == 3
    for kind, score in (("cot", cot), ("error", error), ("fundamental", fundamental)):
        assert "score-texts" in score and flag(score, "--name") == "big" and flag(score, "--kind") == kind
        assert flag(score, "--input") == f"{made}/CREAK_{kind}.jsonl"
    assert (flag(post_process, "--explanations"), flag(post_process, "--scorer")) == ("best", "big")
    assert merge.needs == ("big",) and "--gres=gpu:evaluate" in merge.request(SITE)
    [finetune] = [list(command.words) for command in asked.stage("finetune").commands(None, [])]
    assert f"{made}/CREAK_best_big" in finetune and "--explanations" not in finetune
    asked = graph(NUM_COMPLETIONS="2", EXPLANATIONS="each_epoch")
    assert flag(words(asked.stage("merge"))[-1], "--explanations") == "each_epoch"
    [finetune] = [list(command.words) for command in asked.stage("finetune").commands(None, [])]
    assert flag(finetune, "--explanations") == "each_epoch"
    assert "runs/creak/all/enhance/big_2texts_seed0/CREAK_each_epoch" in finetune


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"EXPLANATIONS": "some"}, "EXPLANATIONS=some: first, all, best or each_epoch was expected"),
        ({"EXPLANATIONS": "all"}, "set NUM_COMPLETIONS above 1"),
        ({"EXPLANATIONS": "all", "NUM_COMPLETIONS": "2", "TASK": "text"}, "TASK=text has none"),
        ({"SCORER": "teacher"}, "only EXPLANATIONS=best scores texts"),
        ({"SCORER": "x", "EXPLANATIONS": "best", "NUM_COMPLETIONS": "2"}, "student or teacher was expected"),
        ({"NUM_COMPLETIONS": "0"}, "NUM_COMPLETIONS"),
    ],
)
def test_explanations_that_do_not_fit_are_refused(variables: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**variables)


def test_a_server_cannot_score() -> None:
    server = dataclasses.replace(MODEL, name="server", requests={}, gpus={})
    asked = settings(NUM_COMPLETIONS="2", EXPLANATIONS="best", SCORER="teacher")
    with pytest.raises(UserError, match="server has no weights here"):
        sample_graph(asked, dataclasses.replace(FACTS, teachers={"big": server}))


def test_a_task_of_the_evaluation_is_a_checkpoint(tmp_path: Path) -> None:
    asked = settings(RUNS=str(tmp_path), LIMIT="8")
    layout = layout_of(asked, FACTS)
    for name in ("checkpoint-100", "checkpoint-20", "checkpoint-x", "other"):
        (layout.checkpoints / name).mkdir(parents=True)
    evaluate = sample_graph(asked, FACTS).stage("evaluate")
    named = [flag(words(evaluate, task)[0], "--model_args").removeprefix("pretrained=") for task in (0, 1, 2)]
    assert named == ["tiny", str(layout.checkpoints / "checkpoint-20"), str(layout.checkpoints / "checkpoint-100")]
    assert words(evaluate, 3) == []
    assert "fewer" in evaluate.nothing


def test_what_is_the_same_work_is_locked_by_one_name() -> None:
    one, other = graph(TASK="cot_tail", SHARDS="2"), graph(TASK="all", SHARDS="2")
    for name in ("prepare", "enhance", "merge"):
        assert one.stage(name).work == other.stage(name).work
        assert one.stage(name).lock(0) == other.stage(name).lock(0)
    for name in ("finetune", "report"):
        assert one.stage(name).work != other.stage(name).work
    assert one.stage("evaluate").lock(0) == other.stage("evaluate").lock(0) == "evaluate-tiny"
    assert one.stage("evaluate").lock(1) != other.stage("evaluate").lock(1)
    assert one.stage("enhance").lock(0) != one.stage("enhance").lock(1)


def test_what_a_job_asks_for() -> None:
    """The site's arguments come last, so they take precedence."""
    asked = {stage.name: stage.request(SITE) for stage in graph().stages}
    few = ["--cpus-per-task=2", "--mem=4G", "--time=04:00:00", "--partition=cpus", "--SBATCH_ARGS", "--CPU_ARGS"]
    assert asked["prepare"] == asked["merge"] == asked["report"] == few
    model = ["--nodes=1", "--gres=gpu:finetune", "--partition=gpus", "--SBATCH_ARGS", "--FINETUNE_ARGS"]
    assert asked["finetune"] == model
    server = dataclasses.replace(MODEL, name="field-x", requests={}, gpus={})
    assert (
        sample_graph(settings(), dataclasses.replace(FACTS, teachers={"big": server})).stage("enhance").request(SITE)
        == few
    )


def test_shards_are_ours_to_choose_only_where_the_user_has_not() -> None:
    cut = graph().with_shards["enhance"]
    assert list(cut(4).stage("enhance").indices) == [0, 1, 2, 3]
    assert not cut(4).with_shards
    assert not graph(SHARDS="1").with_shards
    assert not graph(TASK="text").with_shards


def test_each_teacher_has_a_stage_and_a_folder() -> None:
    asked = graph(TASK="full_tail", TEACHER_COT="a", TEACHER_ERROR="b", TEACHER_FUNDAMENTAL="a", FILTER="cut")
    names = [stage.name for stage in asked.stages]
    assert names == ["prepare", "enhance-cot", "enhance-error", "merge", "finetune", "evaluate", "report"]
    assert asked.models == ("tiny", "a", "b")
    assert "teachers a (cot fundamental), b (error), task full_tail" in asked.summary
    of_enhance = [words(asked.stage(name), 0)[0] for name in names[1:3]]
    assert [(flag(one, "--name"), flag(one, "--task_type"), flag(one, "--output")) for one in of_enhance] == [
        ("a", "cot_text,fundamental_text", "runs/creak/all/enhance/a_seed0/CREAK_{kind}.jsonl"),
        ("b", "error_text", "runs/creak/all/enhance/b_seed0/CREAK_{kind}.jsonl"),
    ]
    assert [stage.needs for stage in asked.stages if stage.name.startswith("enhance")] == [("a",), ("b",)]
    [post_process] = words(asked.stage("merge"))
    joined = flag(post_process, "--output_dir")
    name = joined.removeprefix("runs/creak/all/enhance/")
    assert name.startswith("cot-a+error-b+fundamental-a_") and name.endswith("_seed0")
    place = post_process.index("--enhanced") + 1
    files = post_process[place : place + 3]
    folders = ("a_seed0/CREAK_cot", "b_seed0/CREAK_error", "a_seed0/CREAK_fundamental")
    assert files == [f"runs/creak/all/enhance/{name}.jsonl" for name in folders]
    [finetune] = [list(command.words) for command in asked.stage("finetune").commands(None, [])]
    assert f"{joined}/CREAK_without-cut" in finetune
    assert asked.name == f"tiny_full_tail_{name.removesuffix('_seed0')}_without-cut_seed0"


def test_several_teachers_of_a_kind_are_mixed() -> None:
    asked = graph(TASK="cot_tail,error_tail", TEACHER_COT="a,b", TEACHER_ERROR="a", SHARDS="2")
    assert [stage.name for stage in asked.stages][1:4] == ["enhance-cot", "enhance-cot-2", "merge"]
    assert [flag(words(asked.stage(name), 0)[0], "--task_type") for name in ("enhance-cot", "enhance-cot-2")] == [
        "cot_text,error_text",
        "cot_text",
    ]
    *merges, mix, _, post_process = words(asked.stage("merge"))
    folder = "runs/creak/all/enhance"
    merged = [flag(merge, "--output") for merge in merges]
    assert merged == [f"{folder}/{one}_seed0/CREAK_cot.jsonl" for one in "ab"]
    place = mix.index("--enhanced") + 1
    assert mix[place : place + 2] == merged
    assert flag(mix, "--output").startswith(f"{folder}/a+b_")
    place = post_process.index("--enhanced") + 1
    assert post_process[place : place + 2] == [flag(mix, "--output"), f"{folder}/a_seed0/CREAK_error.jsonl"]
    assert flag(post_process, "--explanations") == "all"


def test_a_mixture_for_the_only_kind_is_post_processed_in_its_folder() -> None:
    asked = graph(TEACHER_COT="b,a", EXPLANATIONS="each_epoch")
    mix, post_process = words(asked.stage("merge"))
    assert flag(mix, "--output") == f"{flag(post_process, '--output_dir')}/CREAK_cot.jsonl"
    assert "--enhanced" not in post_process
    assert layout_of(settings(TEACHER_COT="a,b"), FACTS).joined != layout_of(settings(TEACHER_COT="b,a"), FACTS).joined


def test_no_two_sets_of_teachers_share_a_folder() -> None:
    """Teachers' names may contain what separates them in a folder's name."""
    sets = [
        {"TEACHER_COT": "a"},
        {"TEACHER_ERROR": "a"},
        {"TEACHER_COT": "a", "TEACHER_ERROR": "b"},
        {"TEACHER_COT": "b", "TEACHER_ERROR": "a"},
        {"TEACHER_COT": "a", "TEACHER_FUNDAMENTAL": "b"},
        {"TEACHER": "a", "TEACHER_COT": "big"},
    ]
    layouts = [layout_of(settings(TASK="full_tail", **one), FACTS) for one in sets]
    assert len({layout.joined for layout in layouts}) == len({layout.name for layout in layouts}) == len(sets)
    odd = {"x": "a+error-b", "y": "c", "z": "b+fundamental-c", "w": "a"}
    facts = dataclasses.replace(FACTS, teachers={name: dataclasses.replace(MODEL, name=odd[name]) for name in odd})
    pairs = [({"TEACHER": "y", "TEACHER_COT": "x"}), ({"TEACHER": "y", "TEACHER_COT": "w", "TEACHER_ERROR": "z"})]
    names = {layout_of(settings(TASK="full_tail", **one), facts).joined_run for one in pairs}
    assert len(names) == 2


def test_one_teacher_for_all_kinds_has_the_usual_paths() -> None:
    usual = layout_of(settings(TASK="full_tail"), FACTS)
    kinds = dict.fromkeys(("TEACHER_COT", "TEACHER_ERROR", "TEACHER_FUNDAMENTAL"), "big")
    assert layout_of(settings(TASK="full_tail", TEACHER="a", **kinds), FACTS) == usual
    assert layout_of(settings(TASK="cot_tail", TEACHER_ERROR="a"), FACTS) == layout_of(settings(), FACTS)
    assert usual.joined == usual.teacher_folder("big") == Path("runs/creak/all/enhance/big_seed0")


def test_long_names_fit_into_a_file_system() -> None:
    student = dataclasses.replace(FACTS, student=dataclasses.replace(MODEL, name="s" * 150))
    teachers = {"TEACHER_COT": "long" * 50, "TEACHER_ERROR": "a"}
    asked = sample_graph(settings(TASK="full_tail", **teachers), student)
    for stage in asked.stages:
        assert len(stage.lock(999).encode()) <= 240, stage.lock(999)
    other = sample_graph(settings(TASK="full_tail", **teachers, BATCH="2"), student)
    assert asked.name != other.name


def test_teachers_that_would_share_a_folder_are_refused() -> None:
    facts = dataclasses.replace(FACTS, teachers={"/x/t": BIG, "/y/t": BIG})
    with pytest.raises(UserError, match="the teachers /y/t and /x/t must have different names"):
        layout_of(settings(TASK="full_tail", TEACHER="/x/t", TEACHER_COT="/y/t"), facts)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"TEACHER_COTT": "a"},
            "TEACHER_COTT: the prompts teacherlm have no such kind; there are: TEACHER_COT, TEACHER_ER",
        ),
        ({"TEACHER_COT": "a,,b"}, "TEACHER_COT=a,,b: a teacher between the commas is missing"),
        ({"ENHANCE_FLAGS": "--top_p '0.9"}, "ENHANCE_FLAGS: no closing quotation: flags as in a shell were expected"),
        ({"FINETUNE_FLAGS": "0.1"}, "FINETUNE_FLAGS: a flag such as --seed was expected first, found 0.1"),
        ({"ENHANCE_FLAGS": "--output x"}, "ENHANCE_FLAGS: --output: the chain sets this flag itself; leave it out"),
        ({"ENHANCE_FLAGS": "--top_p 1 --see=3"}, "ENHANCE_FLAGS: --see: the chain sets this flag itself; leave it out"),
        ({"FINETUNE_FLAGS": "--learning-rate 1"}, "FINETUNE_FLAGS: --learning_rate: the chain sets this flag itself"),
        ({"EVALUATE_FLAGS": "--seed 1 -h"}, "EVALUATE_FLAGS: -h: the chain sets this flag itself; leave it out"),
    ],
)
def test_what_a_chain_refuses(variables: dict[str, str], said: str) -> None:
    with pytest.raises(UserError) as refused:
        graph(**variables)
    assert said in str(refused.value)


def test_flags_reach_their_stage_and_have_folders_of_their_own() -> None:
    given = {
        "ENHANCE_FLAGS": "--stop 'a b'",
        "FINETUNE_FLAGS": "--weight_decay 0.1",
        "EVALUATE_FLAGS": "--num_fewshot 2",
    }
    plain, asked = graph(), graph(**given)
    assert words(asked.stage("enhance"), 0)[0][-4:] == ["--stop", "a b", "--shard", "0/1"]
    assert words(asked.stage("finetune"))[0][-2:] == ["--weight_decay", "0.1"]
    assert words(asked.stage("evaluate"))[0][-2:] == ["--num_fewshot", "2"]
    usual, of_one = (
        layout_of(settings(), FACTS),
        {name: layout_of(settings(**{name: given[name]}), FACTS) for name in given},
    )
    enhance, finetune, evaluate = of_one.values()
    assert enhance.joined != usual.joined and enhance.name != usual.name and enhance.evaluated == usual.evaluated
    assert finetune.joined == usual.joined and finetune.name not in (usual.name, enhance.name)
    assert evaluate.name == usual.name and str(evaluate.evaluated).startswith("runs/creak/all/evaluate-")
    same = {name: "--seed_of_nothing 1" for name in given}
    assert len({layout_of(settings(**{name: text}), FACTS).name for name, text in same.items()}) == 3
    assert plain.stage("evaluate").lock(0) != graph(EVALUATE_FLAGS="--num_fewshot 2").stage("evaluate").lock(0)
    work = graph(EVALUATE_FLAGS="--num_fewshot 2").stage("evaluate").work
    assert plain.chain.scores(work) == evaluate.scores
    assert plain.chain.scores(plain.stage("evaluate").work) == usual.scores


def test_the_settings_of_a_submission_have_the_teachers_of_single_kinds() -> None:
    saved = saved_variables("creak", ["TEACHER_COT", "TEACHERLM_CACHE", "HOME"], {})
    assert {"TEACHER_COT", "ENHANCE_FLAGS", "FINETUNE_FLAGS", "EVALUATE_FLAGS"} <= set(saved)
    assert not {"TEACHERLM_CACHE", "HOME"} & set(saved)


def test_other_training_sets_have_stages_of_their_own_in_the_folders_of_their_own_chains() -> None:
    asked = graph(TRAIN="creak,ecqa:0.5", TEST="creak,mmlu", ECQA_DATA="/e", MMLU_DATA="/m", FILTER="overlap")
    names = [
        "prepare",
        "prepare-ecqa",
        "enhance",
        "merge",
        "enhance-ecqa",
        "merge-ecqa",
        "finetune",
        "evaluate",
        "report",
    ]
    assert [stage.name for stage in asked.stages] == names
    own = sample_graph(read_settings("ecqa", {"STUDENT": "tiny", "TEACHER": "big", "FILTER": "overlap"}), FACTS)
    for name in ("enhance", "merge"):
        assert words(asked.stage(f"{name}-ecqa")) == words(own.stage(name))
    assert words(asked.stage("prepare-ecqa")) == [[*words(own.stage("prepare"))[0], "--data", "/e"]]
    enhance = asked.stage("enhance-ecqa")
    assert asked.folder.lock(enhance.lock(0)) == own.folder.lock(own.stage("enhance").lock(0))
    assert asked.chain.enhanced(enhance.work) == own.chain.enhanced(own.stage("enhance").work)
    prepared, tested = words(asked.stage("prepare"))
    assert "--test_only" in tested and flag(tested, "--benchmark") == "mmlu" and flag(tested, "--data") == "/m"
    assert flag(tested, "--test_dir") == flag(prepared, "--test_dir") == "runs/creak/all/prepare/test"
    [finetune] = words(asked.stage("finetune"))
    joined = [flag(words(one.stage("merge"))[-1], "--output_dir") for one in (graph(), own)]
    assert f"{joined[0]}/CREAK_without-overlap,{joined[1]}/ECQA_without-overlap:0.5" in finetune
    assert flag(finetune, "--test_sets") == "runs/creak/all/prepare/test/creak,runs/creak/all/prepare/test/mmlu"
    assert flag(finetune, "--overlaps") == "leave_out"
    [evaluate] = words(asked.stage("evaluate"))
    assert flag(evaluate, "--tasks") == "creak,mmlu"
    assert asked.name == "tiny_cot_tail_big_on-creak+ecqa-0.5_without-overlap_seed0"
    several = graph(TRAIN="creak,ecqa", TASK="full_tail", TEACHER_ERROR="a")
    assert [stage.name for stage in several.stages if stage.name.startswith("enhance")] == [
        *("enhance-cot", "enhance-error", "enhance-cot-ecqa", "enhance-error-ecqa")
    ]
    plain = graph(TASK="text", TRAIN="creak,ecqa")
    assert [stage.name for stage in plain.stages] == ["prepare", "prepare-ecqa", "finetune", "evaluate", "report"]
    with pytest.raises(UserError, match="a folder without a comma"):
        graph(TRAIN="creak,ecqa", RUNS="a,b")
    facts = dataclasses.replace(FACTS, titles={"creak": "CREAK", "2": "TWO"})
    with pytest.raises(UserError, match="TRAIN: two stages would have the name enhance-cot-2"):
        sample_graph(settings(TRAIN="creak,2", TEACHER_COT="a,b"), facts)


def test_the_data_of_all_benchmarks_is_saved_for_the_jobs() -> None:
    given = {"TRAIN": "creak,ecqa:0.5", "TEST": "mmlu", "HOME": "/", "OTHER_DATA": "/x"}
    saved = saved_variables("creak", given, given)
    assert {"CREAK_DATA", "ECQA_DATA", "MMLU_DATA", "TRAIN", "TEST"} <= set(saved)
    assert not {"HOME", "OTHER_DATA"} & set(saved)


def stage(tmp_path: Path, code: str, **fields: object) -> Stage:
    command = [sys.executable, "-P", "-c", code]
    plain = {"name": "prepare", "made": tmp_path, "work": "w", "lock": str, "request": lambda site: []}
    return Stage(commands=lambda index, more: [Command([*command, *more], {"MINE": "1"})], **{**plain, **fields})


def test_missing_tasks_are_those_that_the_stage_names(tmp_path: Path) -> None:
    code = "import os, sys; print(sys.argv[1], os.environ['MINE'], os.environ['NUM_GPUS']); print('3\\n1\\n1\\nx 2')"
    assert missing_indices(stage(tmp_path, code)) == [1, 3]
    assert missing_indices(stage(tmp_path, "raise SystemExit(9)", always=True, indices=range(2))) == [0, 1]
    with pytest.raises(SystemExit) as ended:
        missing_indices(stage(tmp_path, "raise SystemExit(2)"))
    assert ended.value.code == 2


def test_conversations_have_folders_of_their_own() -> None:
    assert layout_of(settings(CHAT="auto"), FACTS) == layout_of(settings(), FACTS)
    chat = layout_of(settings(CHAT="true"), FACTS)
    assert (chat.teacher_runs["big"], chat.name) == ("big_chat_seed0", "tiny_cot_tail_big_chat_seed0")
    assert layout_of(settings(CHAT="false"), FACTS).teacher_runs["big"] == "big_plain_seed0"
    (enhance,) = [one for one in sample_graph(settings(CHAT="true"), FACTS).stages if one.name == "enhance"]
    assert "--chat true" in " ".join(enhance.commands(0, [])[0].words)
    with pytest.raises(UserError, match="CHAT=yes: auto, true or false was expected"):
        settings(CHAT="yes")


def test_adapters_have_a_run_of_their_own() -> None:
    assert layout_of(settings(PEFT="none"), FACTS).name == layout_of(settings(), FACTS).name
    assert layout_of(settings(PEFT="lora"), FACTS).name == "tiny_cot_tail_big_lora_seed0"
    with pytest.raises(UserError, match="PEFT=lorra: none, lora or qlora was expected"):
        settings(PEFT="lorra")


@pytest.fixture
def experiment(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "data" / "mmlu_data" / "5-shot" / "individual_train"
    folder.mkdir(parents=True)
    for name in ("virology", "astronomy", "not a domain$(x)"):
        (folder / f"{name}.5-shot-train.jsonl").touch()
    return {"DATA_DIR": str(tmp_path), "FLAGS": "--n_context 2", "RUNS": "runs", "SIZE": "base"}


def atlas(name: str, variables: dict[str, str]) -> tuple[AtlasSettings, Graph]:
    found = read_atlas_settings(name, variables)
    return found, atlas_graph(found)


def test_the_experiments_are_graphs_like_any_other(experiment: dict[str, str]) -> None:
    for name, run in (("zeroshot", "evaluate"), ("5-shot", "train"), ("5-shot-multi", "train"), ("full", "train")):
        _, made = atlas(f"atlas-{name}", experiment)
        assert [stage.name for stage in made.stages] == ["prepare", run, "score", "report"]
        assert made.stage(run).array == (name == "5-shot")
        assert str(made.chain.path) == f"runs/atlas/{name}/chains/base-mmlu-{name}"
    with pytest.raises(UserError, match="there is no atlas-x; there are: atlas-zeroshot"):
        atlas("atlas-x", experiment)


def test_a_task_of_the_5_shot_setting_is_a_domain(experiment: dict[str, str], tmp_path: Path) -> None:
    _, made = atlas("atlas-5-shot", experiment)
    train = made.stage("train")
    assert list(train.indices) == [0, 1]
    commands = [train.commands(index, [])[0] for index in (0, 1)]
    assert [command.variables["DOMAIN"] for command in commands] == ["astronomy", "virology"]
    assert list(commands[0].words[-3:]) == ["5-shot", "--n_context", "2"]
    assert train.commands(2, []) == []
    assert missing_indices(train) == [0, 1]
    done = tmp_path / "experiments" / "base-mmlu-5-shot" / "astronomy"
    done.mkdir(parents=True)
    (done / "manifest.json").touch()
    assert missing_indices(train) == [1]
    shutil.rmtree(tmp_path / "data")
    assert len(train.indices) == 57  # before the questions are prepared, the number of MMLU's subjects


def test_what_an_experiment_lacks(experiment: dict[str, str], tmp_path: Path) -> None:
    _, made = atlas("atlas-full", experiment)
    model, index = DataFolder(str(tmp_path)).model("base"), DataFolder(str(tmp_path)).index("base")
    assert [thing for thing, _ in made.absences(False)] == [model, index]
    Path(model).mkdir(parents=True)
    _, made = atlas("atlas-full", {**experiment, "PASSAGES": "passages.jsonl"})
    assert made.absences(False) == []


def test_a_folder_s_checksum_is_that_of_cksum() -> None:
    for path in ("/data", "/a b/ü", "x" * 300):
        done = subprocess.run(["cksum"], input=f"{path}\n".encode(), capture_output=True, check=True)
        assert checksum(path) == int(done.stdout.split()[0])


def test_where_a_submission_lies(tmp_path: Path) -> None:
    chain = run_folder(str(tmp_path), "creak", "8").chain("50%_run")
    assert chain.path == tmp_path / "creak" / "limit-8" / "chains" / "50%_run"
    assert chain.log("enhance", True) == f"{tmp_path}/creak/limit-8/chains/50%%_run/logs/enhance-%a.log"
    assert chain.log("merge", False).endswith("/logs/merge.log")
    assert chain.checkpoints == tmp_path / "creak" / "limit-8" / "finetune" / "50%_run"
    assert chain.enhanced("enhance-big_seed0") == tmp_path / "creak" / "limit-8" / "enhance" / "big_seed0"
    assert submitted_chains(tmp_path) == []
    chain.path.mkdir(parents=True)
    chain.jobs.touch()
    assert submitted_chains(tmp_path) == [ChainFolder(chain.path)]


def test_the_chain_knows_the_flags_that_samples_can_have() -> None:
    """The chain lists the flags, but cannot import the module that finds them, which needs packages."""
    from teacherlm.chain import settings as of_chain
    from teacherlm.dataset import quality

    assert set(of_chain.FLAGS) == set(quality.FLAGS)


def test_the_engine_of_a_local_teacher_is_ours_to_choose() -> None:
    assert flag(words(graph().stage("enhance"), 0)[0], "--engine") == "auto"
    assert flag(words(graph(ENGINE="vllm").stage("enhance"), 0)[0], "--engine") == "vllm"
    server = dataclasses.replace(MODEL, name="served", requests={}, gpus={})
    served = sample_graph(settings(ENGINE="vllm"), dataclasses.replace(FACTS, teachers={"big": server}))
    assert flag(words(served.stage("enhance"), 0)[0], "--engine") == "auto"  # it takes the server's engine
    with pytest.raises(UserError, match="ENGINE=vlm: auto, transformers, vllm or serve was expected"):
        graph(ENGINE="vlm")


def test_the_stages_of_several_teachers_are_followed_in_slurm(tmp_path: Path) -> None:
    """`make status` reads jobs.tsv, finds the stages' logs and states, and counts each teacher's own texts."""
    made = graph(TASK="full_tail", TEACHER_COT="a", TEACHER_ERROR="b", RUNS=str(tmp_path))
    chain = made.chain
    (chain.states).mkdir(parents=True)
    rows = [
        Job(stage.name, str(number), "0", "-", stage.work, chain.log(stage.name, stage.array)).row()
        for number, stage in enumerate(made.stages, 1)
    ]
    chain.jobs.write_text("".join(f"{row}\n" for row in rows))
    tasks = read_tasks(chain)
    assert [task.stage for task in tasks] == [stage.name for stage in made.stages]
    assert [task.log for task in tasks][1:4] == [
        "enhance-cot-0.log",
        "enhance-error-0.log",
        "enhance-fundamental-0.log",
    ]
    (chain.states / "enhance-error-0").write_text("failed with 2\t3\tnode\t0\n")
    assert [state_of(chain, task, {}) for task in tasks][2] == "failed with 2"
    assert list(failed_jobs(made.folder.path)) == [f"enhance-error: task 0 of {made.name} failed with 2"]
    texts = tmp_path / "creak" / "all" / "enhance" / "b_seed0" / ".CREAK_error.jsonl.progress"
    texts.parent.mkdir(parents=True)
    texts.write_text("{}\n" * 6)
    assert [count_progress(chain, [task]) for task in tasks][1:4] == ["0 texts", "5 texts", "0 texts"]


def test_engine_serve_needs_the_command_of_a_server() -> None:
    with pytest.raises(UserError, match=r"ENGINE=serve: big has no `serve` in a models/big\.yaml"):
        graph(ENGINE="serve")
    serving = dataclasses.replace(FACTS, teachers={"big": dataclasses.replace(BIG, serves=True)})
    [enhance] = words(sample_graph(settings(ENGINE="serve"), serving).stage("enhance"))
    assert flag(enhance, "--engine") == "serve"


def test_a_chat_student_has_a_run_and_an_untrained_result_of_its_own() -> None:
    """Without STUDENT_CHAT, names and finetuning's command are those of earlier versions."""
    plain, chat = graph(), graph(STUDENT_CHAT="true")
    assert (plain.name, chat.name) == ("tiny_cot_tail_big_seed0", "tiny_cot_tail_big_chat-student_seed0")
    assert graph(CHAT="true").name == "tiny_cot_tail_big_chat_seed0"  # the teacher's
    for asked, said in ((plain, "false"), (chat, "true")):
        [finetune] = [list(command.words) for command in asked.stage("finetune").commands(None, [])]
        assert finetune[finetune.index("--chat") :][1:2] == ["true"] if said == "true" else "--chat" not in finetune
        [untrained] = words(asked.stage("evaluate"), 0)
        assert flag(untrained, "--chat") == said
    assert layout_of(settings(STUDENT_CHAT="true"), FACTS).untrained_scores == Path("runs/creak/all/evaluate/tiny_chat")
    assert layout_of(settings(), FACTS).untrained_scores == Path("runs/creak/all/evaluate/tiny")
    assert [stage.made for stage in plain.stages][:3] == [stage.made for stage in chat.stages][:3]
    with pytest.raises(UserError, match="STUDENT_CHAT=auto: true or false was expected"):
        settings(STUDENT_CHAT="auto")


def test_the_student_s_yaml_chooses_where_the_variable_does_not() -> None:
    yaml = dataclasses.replace(MODEL, values={**VALUES, "finetune.chat": "true"})
    facts = dataclasses.replace(FACTS, student=yaml)
    for value, expected in ((None, True), ("true", True), ("false", False)):
        asked = sample_graph(settings(**({"STUDENT_CHAT": value} if value else {})), facts)
        assert ("_chat-student_" in asked.name) == expected
        [finetune] = [list(command.words) for command in asked.stage("finetune").commands(None, [])]
        assert ("--chat" in finetune) == (not expected)
