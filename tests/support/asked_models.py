"""Models of many kinds, and their answers by the plain forward pass."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from transformers import AutoModelForCausalLM

from support.any_models import SIZES
from teacherlm.runtime import tokens
from teacherlm.runtime.generation import Prompt, Sampling
from teacherlm.runtime.generation.transformers_engine import TransformersEngine
from teacherlm.runtime.loading import load_tokenizer

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

CONTEXT = "Q: Bees are insects. (A) True (B) False A: The answer is ("


def ask(*pairs: tuple[str, str]) -> list["Instance"]:
    from lm_eval.api.instance import Instance  # most who import this module do not score

    return [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0, metadata=("", 0, 1)) for pair in pairs
    ]


def words(stage: str, model: Path, prepared: Path, folder: Path) -> list[object]:
    """The flags of a short run of a stage."""
    flags = {
        "enhance": {"--name": model, "--input": prepared / "SAMPLE.jsonl", "--output": folder / "out.jsonl"}
        | {"--task_type": "cot_text", "--num_tokens": 4},
        "finetune": {"--model_name_or_path": model, "--dataset_name": prepared / "SAMPLE", "--task_type": "text"}
        | {"--output_dir": folder / "run", "--num_train_epochs": 1, "--per_device_train_batch_size": 8},
        "evaluate": {"--model_args": f"pretrained={model}", "--tasks": "sample", "--datasets": prepared / "tests"}
        | {"--output_path": folder / "results"},
    }[stage]
    return [word for pair in flags.items() for word in pair]


def generated(folder: Path, prompts: list[str], count: int = 12) -> tuple[str, list[list[int]]]:
    """The path on which an engine computes, and the texts of the new tokens, for rows of different lengths."""
    engine = TransformersEngine(folder, "float32", Sampling(count, 0, 1.0), batch_size=2)
    asked = (Prompt("cot_text", index, 0, prompt, 0) for index, prompt in enumerate(prompts))
    made = {completion.prompt.index: completion.text for completion in engine.complete(asked)}
    return engine.verdict.path, [made[index] for index in range(len(prompts))]


def likeliest(folder: Path, prompt: str, count: int = 12) -> str:
    """The texts of the new tokens by plain forward passes over the whole text, one token at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = load_tokenizer(folder)
    before = tokens.encode_prompt(tokenizer, prompt)
    after: list[int] = []
    while len(after) < count and after[-1:] != [model.config.get_text_config().eos_token_id]:
        with torch.no_grad():
            after.append(int(model(input_ids=torch.tensor([before + after])).logits[0, -1].argmax()))
    if after[-1] == model.config.get_text_config().eos_token_id:
        after.pop()
    return tokens.decode_completion(tokenizer, before, after)


def gpt_neo() -> transformers.PreTrainedModel:
    config = transformers.GPTNeoConfig(
        vocab_size=600, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
        window_size=8, max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.GPTNeoForCausalLM(config)


def gemma2() -> transformers.PreTrainedModel:
    config = transformers.Gemma2Config(
        vocab_size=600, **SIZES, head_dim=8, attn_logit_softcapping=2.0, final_logit_softcapping=5.0, sliding_window=8
    )
    return transformers.Gemma2ForCausalLM(config)


def gemma3() -> transformers.PreTrainedModel:
    text = {"vocab_size": 600, **SIZES, "head_dim": 8, "sliding_window": 8}
    text["layer_types"] = ["sliding_attention", "full_attention"]
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return transformers.Gemma3ForConditionalGeneration(config)
