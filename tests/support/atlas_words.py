"""The words of an ATLAS evaluation."""

from pathlib import Path


def words(place: Path, output: Path, *more: object) -> list[str]:
    flags = {
        "--reader_model_type": place / "t5",
        "--retriever_model_path": place / "bert",
        "--checkpoint_dir": output,
        "--name": "run",
        "--text_maxlength": 96,
        "--target_maxlength": 16,
        "--n_context": 3,
        "--generation_max_length": 4,
        "--per_gpu_batch_size": 2,
        "--multiple_choice_eval_permutations": "cyclic",
    }
    flags = [word for flag, value in flags.items() for word in (flag, value)]
    return [str(word) for word in [*flags, "--eval_data", place / "test.jsonl", "--write_results", *more]]
