"""The engine of a command: how it is made, and which one `--engine auto` chooses for a local teacher.

`auto` is the fastest engine that can take it on this machine. It never runs the command of a YAML (`serve`), which
strangers may have written.
Sampled texts differ between engines, because each has its own random numbers. An output is therefore continued with the
engine that has begun it; job.py sees to that.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

from teacherlm.catalog.models import Model, has_only_gguf, local_folder
from teacherlm.catalog.servers import KEY
from teacherlm.catalog.serving import serve_words
from teacherlm.core.errors import UserError
from teacherlm.enhance.engines.budget import Budget
from teacherlm.enhance.engines.pace import Pace
from teacherlm.enhance.flags import EnhanceFlags
from teacherlm.enhance.job import SERVE, VLLM, Job
from teacherlm.runtime.generation import Engine, Sampling, most_tokens
from teacherlm.runtime.generation.vllm_choice import gpus_together, vllm_lacks


def make_engine(
    flags: EnhanceFlags, teacher: Model, job: Job, longest: int, budget: Budget | None
) -> tuple[Engine, str]:
    """The engine, and a description of it for the log, which follows the prompt fields in a line of messages.

    Args:
        flags: with the engine that was chosen.
        job: the first job of the command. The others have the same teacher.
        longest: number of bytes of the longest prompt.
        budget: what a server may cost.
    """
    sampling = Sampling(flags.num_tokens, flags.temperature, flags.top_p, flags.stop, flags.top_logprobs)
    if teacher.server is not None:
        from teacherlm.enhance.engines.openai_engine import CONCURRENCY, OpenAIEngine

        server = OpenAIEngine(
            teacher.server,
            sampling,
            flags.batch_size or CONCURRENCY,
            teacher.served,
            flags.key_variable or KEY,
            Pace(flags.requests_per_minute, flags.tokens_per_minute),
            budget,
        )
        return server, f"{server.model} at {server.address}, {server.concurrency} at a time"
    if teacher.explanations is not None:
        from teacherlm.enhance.engines.field_engine import FieldEngine

        return FieldEngine(flags.input, teacher.explanations), f"from their field {teacher.explanations!r}"
    folder, gpus = local_folder(teacher), teacher.recommended("slurm.enhance.gpus")
    if flags.engine == SERVE:
        from teacherlm.enhance.engines.served_engine import ServedEngine

        serve = serve_command(teacher, folder, gpus)
        served = ServedEngine(serve, teacher.name, job.server_log, sampling, flags.batch_size)
        return served, f"with a server of its own, {served.concurrency} at a time"
    if has_only_gguf(folder):
        raise UserError(f"{folder} has weights that only a server reads (*.gguf): use --engine serve")
    if flags.engine == VLLM:
        from teacherlm.runtime.generation.vllm_engine import VLLMEngine

        together = gpus_together(folder, gpus)
        within_vllm = VLLMEngine(folder, flags.dtype, sampling, together)
        described = f"with vLLM on {together} GPUs" if together > 1 else "with vLLM"
        return within_vllm, described + (" (batch-invariant)" if within_vllm.is_batch_invariant else "")
    from teacherlm.runtime.generation.transformers_engine import TransformersEngine

    batch_size = flags.batch_size or teacher.recommended("enhance.batch")
    bound = most_tokens(folder, longest, flags.num_tokens, job.is_chat)
    digest = job.run.inputs["teacher"]["sha256"]
    engine = TransformersEngine(folder, flags.dtype, sampling, batch_size, digest, bound)
    return engine, f"on {engine.device.type} in {engine.dtype}, {engine.max_rows} at a time"


def serve_command(teacher: Model, folder: Path, gpus: int) -> Callable[[int], list[str]]:
    """What makes the words of a teacher's command for a port.

    Raises:
        UserError: the teacher has no such command, or it cannot be filled in.
    """
    if teacher.serve is None:
        raise UserError(f"--engine serve: {teacher.name} has no `serve` in a models/{teacher.name}.yaml")
    places = {"folder": str(folder), "name": teacher.name, "gpus": str(gpus_together(folder, gpus))}
    if teacher.package is not None and "file" in teacher.package:
        from teacherlm.catalog.packages import packaged_file

        places["file"] = str(packaged_file(teacher.name, teacher.package))
    command = teacher.serve
    serve_words(teacher.name, command, {**places, "port": "0"})  # a mistake is found before the work begins
    return lambda port: serve_words(teacher.name, command, {**places, "port": str(port)})


def fastest(teacher: Model, dtype: str) -> str:
    """The fastest engine here. If vLLM is installed but cannot take the teacher, a line says why."""
    if importlib.util.find_spec("vllm") is None:
        return "transformers"
    if why := vllm_lacks(local_folder(teacher), dtype):
        print(f"enhance: --engine transformers, although vLLM is installed: {why}", flush=True)
        return "transformers"
    return "vllm"
