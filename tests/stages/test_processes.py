"""Several processes over gloo, with DeepSpeed: the numbers of one process, checkpoints that are ordinary models."""

import contextlib
import json
import os
import subprocess
import threading
import time
from pathlib import Path

import datasets
import psutil
import pytest
import torch
from support.pickles_with_code import Evil
from support.programs import warm_python
from support.two_processes import EPOCHS, STEPS, finetune, start
from transformers import AutoModelForCausalLM

UNEVEN = ["--max_train_samples", 22, "--per_device_eval_batch_size", 7]  # of 80 dev samples: the last batch has 3 or 10


def losses(store: Path, kind: str = "loss") -> list[float]:
    records = [json.loads(line) for line in (store / "run" / "log.jsonl").read_text().splitlines()]
    return [record[kind] for record in records if kind in record]


def weights(store: Path, step: int) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(store / "run" / f"checkpoint-{step}").state_dict()


@pytest.fixture(scope="module")
def alone(tiny_llama: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("alone")
    done = finetune(tiny_llama, prepared / "SAMPLE", store, 1, "--dev_dataset", prepared / "SAMPLE", *UNEVEN)
    assert done.returncode == 0, done.stderr
    return store


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_two_processes_learn_what_one_does_and_resume(
    stage: str, tiny_llama: Path, prepared: Path, alone: Path, tmp_path: Path
) -> None:
    words = ["--deepspeed", stage, "--dev_dataset", prepared / "SAMPLE", *UNEVEN]
    started = start(tiny_llama, prepared / "SAMPLE", tmp_path, 2, *words, "--num_train_epochs", 1)
    places: set[str] = set()
    watcher = threading.Thread(target=watch_listening_places, args=(started, places))
    watcher.start()
    output, errors = started.communicate()
    watcher.join()
    first = subprocess.CompletedProcess(started.args, started.returncode, output, errors)
    assert first.returncode == 0, first.stderr[-2000:]
    assert places
    assert places <= {"127.0.0.1", "::1"}  # nothing listens on the network
    assert "training in 2 processes on the CPU" in first.stdout
    assert "at most 4 per step (batches of 2, 2 processes)" in first.stdout
    assert losses(tmp_path) == pytest.approx(losses(alone)[:STEPS], abs=1e-5)
    assert list((tmp_path / "run" / f"checkpoint-{STEPS}").glob("global_step*/*optim_states.pt"))  # DeepSpeed's own
    second = finetune(tiny_llama, prepared / "SAMPLE", tmp_path, 2, *words)
    assert second.returncode == 0, second.stderr[-2000:]
    assert f"resuming from {tmp_path / 'run' / f'checkpoint-{STEPS}'}" in second.stdout
    assert losses(tmp_path) == pytest.approx(losses(alone), abs=1e-5)
    assert losses(tmp_path, "dev_loss") == pytest.approx(losses(alone, "dev_loss"), abs=1e-5)
    expected = weights(alone, EPOCHS * STEPS)
    for name, tensor in weights(tmp_path, EPOCHS * STEPS).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-4, rtol=1e-3)


def watch_listening_places(started: subprocess.Popen, found: set[str]) -> None:
    """Add to `found` the addresses that the processes with a command's standard output listen on, until it ends."""
    pipe = os.fstat(started.stdout.fileno()).st_ino
    while started.returncode is None:  # which `communicate` sets, in another thread
        with contextlib.suppress(psutil.Error):
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error, OSError):
                    if Path(f"/proc/{process.pid}/fd/1").stat().st_ino != pipe:
                        continue
                    sockets = process.net_connections("tcp")
                    found |= {one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN}
        time.sleep(0.1)


def test_a_planted_pickle_among_deepspeed_s_states_does_not_run(
    tiny_llama: Path, prepared: Path, tmp_path: Path
) -> None:
    words = ["--deepspeed", "zero2", "--max_train_samples", 4]
    first = finetune(tiny_llama, prepared / "SAMPLE", tmp_path, 2, *words, "--num_train_epochs", 1)
    assert first.returncode == 0, first.stderr[-2000:]
    checkpoint = tmp_path / "run" / "checkpoint-1"
    [states] = checkpoint.glob("global_step1/mp_rank_00_model_states.pt")
    torch.save({"module": Evil(tmp_path / "evil")}, states)
    second = finetune(tiny_llama, prepared / "SAMPLE", tmp_path, 2, *words)
    assert second.returncode == 2
    assert not (tmp_path / "evil").exists()
    assert second.stderr.count("error:") == 1, second.stderr
    assert f"{states}: refused, its pickle asks for posix.mkdir, which could run code" in second.stderr
    assert "Traceback" not in second.stderr
    (checkpoint / "latest").write_text("../elsewhere")
    torch.save({}, states)
    third = finetune(tiny_llama, prepared / "SAMPLE", tmp_path, 2, *words)
    assert "the name of a folder global_stepN in this checkpoint was expected, found '../elsewhere'" in third.stderr


def test_a_mistake_is_said_once(tiny_llama: Path, prepared: Path, tmp_path: Path) -> None:
    wrong = finetune(tiny_llama, prepared / "SAMPLE", tmp_path, 2, "--task_type", "nothing")
    assert wrong.returncode == 2
    assert wrong.stderr.count("no text field 'nothing'") == 1


def test_a_configuration_that_is_not_there_lists_those_that_are(
    tiny_llama: Path, prepared: Path, tmp_path: Path
) -> None:
    wrong = finetune(tiny_llama, prepared / "SAMPLE", tmp_path, 2, "--deepspeed", "zero4")
    assert wrong.returncode == 2
    assert "--deepspeed zero4: no such file; there are: zero1, zero2, zero3, zero3_offload" in wrong.stderr


def test_a_mistake_that_one_process_alone_sees_is_said_too(tiny_llama: Path, prepared: Path, tmp_path: Path) -> None:
    """The process waits for rank 0 to report an error, and then reports it itself. The wait is shorter here."""
    words = [
        "--model_name_or_path",
        tiny_llama,
        "--dataset_name",
        prepared / "SAMPLE",
        "--output_dir",
        tmp_path / "run",
        "--task_type",
        "text",
    ]
    code = "from teacherlm.finetune import main, processes; from teacherlm.core.programs import run\n"
    code += "processes.FIRST_SAYS_IT = 2\nrun(main.main)"
    command = [warm_python(), "-c", code, *words, "--deepspeed", "zero4"]
    began = time.monotonic()
    place = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    alone = subprocess.run(list(map(str, command)), env=os.environ | place, capture_output=True, text=True)
    assert time.monotonic() - began >= 2
    assert alone.returncode == 2
    assert "--deepspeed zero4: no such file" in alone.stderr


def test_two_processes_have_the_parts_and_the_texts_of_an_epoch_that_one_has(tiny_llama: Path, tmp_path: Path) -> None:
    """With weights of the parts, and another text of each sample in each epoch."""
    rows = []
    for number in range(20):
        question = f"Q: Is {number // 2} odd? (A) yes (B) no A: The answer is ("
        tail = f"{question}{'BA'[number // 2 % 2]}).{' It is so.' * (number % 3 + 1)}"
        parts = [["question", len(question)], ["answer", len(question) + 3], ["explanation", len(tail)]]
        numbers = {"sample_number": number // 2 + 1, "text_number": number % 2 + 1}
        rows.append({**numbers, "cot_text": tail, "parts": json.dumps({"cot_text": parts})})
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "TEXTS"))
    words = ["--loss_weights", "answer:0.5,explanation:0.5", "--explanations", "each_epoch"]
    stores = []
    for processes in (1, 2):
        stores.append(tmp_path / str(processes))
        more = ["--deepspeed", "zero2"] if processes == 2 else []
        done = finetune(tiny_llama, tmp_path / "TEXTS", stores[-1], processes, *words, *more)
        assert done.returncode == 0, done.stderr[-2000:]
    for name in ("loss", "answer_loss", "explanation_loss"):
        found = losses(stores[0], name)
        assert len(found) == 3 * EPOCHS and losses(stores[1], name) == pytest.approx(found, abs=1e-5)
