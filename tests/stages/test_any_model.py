"""Models that the code was not written for are computed exactly, by the library's plain forward pass, or refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from datasets import Dataset
from lm_eval.api.instance import Instance
from support.any_models import SIZES, byte_tokenizer, llama_config, reference, save, sentencepiece_tokenizer
from support.asked_models import CONTEXT, ask, gemma2, gemma3, generated, gpt_neo, likeliest, words
from support.files import read_lines
from support.programs import only_error
from tokenizers import Tokenizer, models, processors
from transformers import LlamaForCausalLM

from teacherlm.finetune.fields import parse_fields
from teacherlm.finetune.samples import tokenize
from teacherlm.runtime import self_check, tokens
from teacherlm.runtime.generation import Prompt, Sampling
from teacherlm.runtime.generation.transformers_engine import TransformersEngine
from teacherlm.runtime.loading import load_model, load_tokenizer
from teacherlm.scoring.language_model import LanguageModel

Inside = Callable[..., object]
STAGES = ("enhance", "finetune", "evaluate")


def refused_model(kind: str, folder: Path) -> Path:
    """A model that no stage may take."""
    bert = {name: value for name, value in SIZES.items() if name not in ("num_key_value_heads", "bos_token_id")}
    tiny = {"vocab_size": 600, "d_model": 32}
    if kind == "without its head":
        return save(folder, LlamaForCausalLM(llama_config()), without=("lm_head.weight",))
    if kind == "without half of a layer":
        return save(folder, LlamaForCausalLM(llama_config()), without=("model.layers.1.mlp.up_proj.weight",))
    if kind == "of another shape":
        save(folder, LlamaForCausalLM(llama_config(intermediate_size=48)))
        llama_config().save_pretrained(folder)
        return folder
    if kind == "with a layer too many":
        save(folder, LlamaForCausalLM(llama_config(num_hidden_layers=3)))
        llama_config().save_pretrained(folder)
        return folder
    if kind == "BERT":
        return save(folder, transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=600, **bert)))
    if kind == "RoBERTa":
        return save(folder, transformers.RobertaForCausalLM(transformers.RobertaConfig(vocab_size=600, **bert)))
    if kind == "BART":
        config = transformers.BartConfig(**tiny, encoder_layers=1, decoder_layers=1, max_position_embeddings=512)
        return save(folder, transformers.BartForConditionalGeneration(config))
    config = transformers.T5Config(**tiny, d_ff=64, num_layers=1, num_heads=4, d_kv=8)
    return save(folder, transformers.T5ForConditionalGeneration(config))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("without its head", "lm_head.weight"),
        ("without half of a layer", "model.layers.1.mlp.up_proj.weight"),
        ("of another shape", "[32, 48]"),
        ("with a layer too many", "model.layers.2."),
        ("BERT", "BertForMaskedLM (bert)"),
        ("RoBERTa", "RobertaForCausalLM (roberta), an encoder"),
        ("BART", "BartForConditionalGeneration (bart), an encoder-decoder"),
        ("T5", "T5ForConditionalGeneration (t5), an encoder-decoder"),
    ],
)
def test_a_model_that_is_not_whole_or_no_decoder_is_refused_by_every_stage(
    kind: str, says: str, prepared: Path, inside: Inside, tmp_path: Path
) -> None:
    model = refused_model(kind, tmp_path / "model")
    for stage in STAGES:
        message = only_error(inside(stage, *words(stage, model, prepared, tmp_path)))
        assert says in message, stage
        assert "is the copy complete" not in message
    assert not (tmp_path / "out.jsonl").exists()


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, prepared: Path, inside: Inside) -> None:
    model = LlamaForCausalLM(llama_config())
    save(tmp_path / "model", model)
    model.model.norm.weight.data[3] = float("nan")
    model.save_pretrained(tmp_path / "model")
    for stage in STAGES:
        message = only_error(inside(stage, *words(stage, tmp_path / "model", prepared, tmp_path)))
        assert "model.norm.weight" in message


def test_a_checkpoint_is_scored_with_its_own_configuration(tmp_path: Path, prepared: Path, inside: Inside) -> None:
    first = save(tmp_path / "first", LlamaForCausalLM(llama_config()))
    run = tmp_path / "run"
    for step, theta in ((2, 10000.0), (4, 50.0)):
        config = llama_config(rope_parameters={"rope_type": "default", "rope_theta": theta})
        save(run / f"checkpoint-{step}", LlamaForCausalLM(config))
    flags = words("evaluate", first, prepared, tmp_path)
    assert inside("evaluate", *flags, "--checkpoints", run, "--limit", 6).returncode == 0
    for step in (2, 4):
        tokenizer = load_tokenizer(first)
        for sample in read_lines(tmp_path / "results" / "run" / f"checkpoint-{step}" / "sample_samples.jsonl"):
            expected = reference(run / f"checkpoint-{step}", tokenizer(sample["prompt"])["input_ids"])[-1]
            for letter, found in sample["loglikelihoods"].items():
                assert found == pytest.approx(float(expected[tokenizer(letter)["input_ids"][0]]), abs=1e-4)


@pytest.mark.parametrize("around", ["$A", "<s> $A", "<s> $A </s>", "$A </s>"])
def test_all_stages_agree_on_the_special_tokens(around: str, tmp_path: Path) -> None:
    folder = save(tmp_path, LlamaForCausalLM(llama_config()), byte_tokenizer(around))
    tokenizer = load_tokenizer(folder)
    bare = tokenizer(CONTEXT, add_special_tokens=False)["input_ids"]
    begins, ends = [1] * ("<s>" in around), [2] * ("</s>" in around)
    assert tokens.encode_prompt(tokenizer, CONTEXT) == begins + bare
    model = LanguageModel(folder, "cpu", "float32", "apart")
    assert model._encode_pair(CONTEXT, "A")[0] == begins + bare
    assert model.tok_batch_encode([CONTEXT])[0][0].tolist() == begins + bare
    rows, _ = tokenize(Dataset.from_dict({"text": [CONTEXT]}), tokenizer, parse_fields("text"), 512, False, 0)
    assert rows[0]["input_ids"] == begins + bare + ends
    (row,) = [TransformersEngine(folder, "float32", Sampling(3, 0, 1.0)).row_of(Prompt("cot_text", 0, 0, CONTEXT, 0))]
    assert row.tokens == begins + bare


def test_a_cut_sample_keeps_the_token_that_begins_a_text(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer("<s> $A")
    dataset = Dataset.from_dict({"text": [f"{CONTEXT}A). Because bees have six legs.", "x y z"]})
    whole, _ = tokenize(dataset, tokenizer, parse_fields("text"), 512, False, 0)
    cut, _ = tokenize(dataset, tokenizer, parse_fields("text"), 10, False, 0)
    assert cut[0]["input_ids"] == [1, *whole[0]["input_ids"][-9:]]
    assert cut[1]["input_ids"] == whole[1]["input_ids"][:1] + whole[1]["input_ids"][1:][-9:]


def test_the_first_blank_of_a_completion_survives(tmp_path: Path) -> None:
    tokenizer = sentencepiece_tokenizer()
    prompt = tokens.encode_prompt(tokenizer, "Let's think step by step.")
    whole = tokens.encode_prompt(tokenizer, "Let's think step by step. Because it is so.")
    assert whole[: len(prompt)] == prompt
    assert tokenizer.decode(whole[len(prompt) :], skip_special_tokens=True)[0] != " "  # what was written before
    assert tokens.decode_completion(tokenizer, prompt, whole[len(prompt) :]) == " Because it is so."
    folder = save(tmp_path, LlamaForCausalLM(llama_config(vocab_size=400)), tokenizer)
    assert LanguageModel(folder, "cpu", "float32").tok_decode(whole[len(prompt) :]) == " Because it is so."


def test_choices_are_tokenized_as_the_student_was_trained(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tokenizer = sentencepiece_tokenizer()
    folder = save(tmp_path, LlamaForCausalLM(llama_config(vocab_size=400)), tokenizer)
    model = LanguageModel(folder, "cpu", "float32")
    found = [value for value, _ in model.loglikelihood(ask((CONTEXT, "A"), (CONTEXT, "B")))]
    for letter, value in zip("AB", found):
        whole = tokenizer(CONTEXT + letter)["input_ids"]
        assert value == pytest.approx(float(reference(folder, whole[:-1])[-1, whole[-1]]), abs=1e-4)
    assert model.described()["tokenization"] == "context and choice together"
    assert "they are tokenized jointly, as in the training of students" in capsys.readouterr().out
    apart = LanguageModel(folder, "cpu", "float32", "apart")
    assert [value for value, _ in apart.loglikelihood(ask((CONTEXT, "A"), (CONTEXT, "B")))] != pytest.approx(found)


def test_a_choice_that_melts_into_the_context_is_scored_with_the_token_that_spans_both(tmp_path: Path) -> None:
    folder = save(tmp_path, LlamaForCausalLM(llama_config()))
    tokenizer = load_tokenizer(folder)
    model = LanguageModel(folder, "cpu", "float32", "joint")
    before, after = model._encode_pair("The an", "imal")
    assert before + after == tokenizer("The animal")["input_ids"]
    assert after
    (found,) = model.loglikelihood(ask(("The an", "imal")))
    logs = reference(folder, [*before, *after[:-1]])
    expected = sum(float(logs[len(before) - 1 + place, token]) for place, token in enumerate(after))
    assert found[0] == pytest.approx(expected, abs=1e-4)


def test_texts_longer_than_the_positions_are_cut(tmp_path: Path, prepared: Path, inside: Inside) -> None:
    config = transformers.GPT2Config(vocab_size=600, n_positions=90, n_embd=32, n_layer=2, n_head=4)
    model = save(tmp_path / "gpt2", transformers.GPT2LMHeadModel(config))
    result = inside("finetune", *words("finetune", model, prepared, tmp_path), "--max_source_length", 2048)
    assert result.returncode == 0, result.stderr
    assert "90 tokens" in result.stdout
    assert all(row["tokens"] > 90 for row in read_lines(tmp_path / "run" / "cut.jsonl"))
    result = inside("evaluate", *words("evaluate", model, prepared, tmp_path), "--limit", 4)
    assert result.returncode == 0, result.stderr
    tokenizer = load_tokenizer(model)
    prompts = [row["prompt"] for row in read_lines(tmp_path / "results" / "gpt2" / "sample_samples.jsonl")]
    truncated = 2 * sum(len(tokenizer(prompt)["input_ids"]) > 90 for prompt in prompts)
    assert json.loads((tmp_path / "results" / "gpt2" / "sample.json").read_text())["truncated"] == truncated
    result = inside("enhance", *words("enhance", model, prepared, tmp_path))
    assert (result.returncode, "the model's window is 90" in result.stderr) == (2, True)


def test_a_tokenizer_that_is_larger_than_the_embedding_is_refused(
    tmp_path: Path, prepared: Path, inside: Inside
) -> None:
    model = save(tmp_path / "model", LlamaForCausalLM(llama_config(vocab_size=300)), byte_tokenizer())
    for stage in STAGES:
        result = inside(stage, *words(stage, model, prepared, tmp_path))
        assert (result.returncode, "300 rows" in result.stderr.splitlines()[-1]) == (2, True), stage


def test_a_kept_prefix_is_computed_again_after_generation(tmp_path: Path) -> None:
    folder = save(tmp_path, LlamaForCausalLM(llama_config()))
    shots = "Q: Bees are insects. (A) True (B) False A: The answer is (A). "
    pairs = [(f"{shots}Q: {word}. A: (", letter) for word in ("Ants", "Iron", "Salt") for letter in ("A", "B")]
    model = LanguageModel(folder, "cpu", "float32")
    expected = model.loglikelihood(ask(*pairs))
    model.generate_until([Instance("generate_until", {}, (shots, {"until": ["."], "max_gen_toks": 3}), 0)])
    assert model.loglikelihood(ask(*pairs)) == expected


def deepseek_v3() -> transformers.PreTrainedModel:
    config = transformers.DeepseekV3Config(
        vocab_size=600, **SIZES | {"num_key_value_heads": 4}, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=4, n_routed_experts=4, n_group=2, topk_group=1, num_experts_per_tok=2,
        moe_intermediate_size=32, first_k_dense_replace=1,
    )  # fmt: skip
    return transformers.DeepseekV3ForCausalLM(config)


def jamba() -> transformers.PreTrainedModel:
    config = transformers.JambaConfig(
        vocab_size=600, **SIZES, use_mamba_kernels=False, attn_layer_period=2, attn_layer_offset=1, num_experts=2,
        expert_layer_period=2, mamba_d_state=4, mamba_dt_rank=4,
    )  # fmt: skip
    return transformers.JambaForCausalLM(config)


@pytest.mark.parametrize(
    ("make", "teacher"),
    [(gpt_neo, "alone"), (deepseek_v3, "batched"), (jamba, "alone"), (gemma2, "batched"), (gemma3, "batched")],
)
def test_other_attention_and_states_are_computed_exactly(
    make: Callable, teacher: str, tmp_path: Path, prepared: Path, inside: Inside
) -> None:
    torch.manual_seed(0)
    folder = save(tmp_path / "model", make())
    prompts = ["Bees are", "The capital of France is a city on the river", "Iron", "A very old pear tree stood in it"]
    dtype = torch.float32 if make in (deepseek_v3, jamba) else torch.float64  # torch's experts take no more
    path, texts = generated(folder, prompts)
    assert path == teacher
    assert texts == [likeliest(folder, prompt) for prompt in prompts]
    model = LanguageModel(folder, "cpu", "float32")
    contexts = [f"{prompt} {CONTEXT}" for prompt in prompts]
    found = model.loglikelihood(ask(*((context, letter) for context in contexts for letter in "AB")))
    tokenizer = load_tokenizer(folder)
    for number, (value, _) in enumerate(found):
        logs = reference(folder, tokenizer(contexts[number // 2])["input_ids"], dtype)[-1]
        assert value == pytest.approx(float(logs[tokenizer("AB"[number % 2])["input_ids"][0]]), abs=2e-4)
    flags = [*words("finetune", folder, prepared, tmp_path), "--max_train_samples", 4, "--learning_rate", 1e-9]
    result = inside("finetune", *flags, "--logging_steps", 1, "--gradient_checkpointing", "true")
    assert result.returncode == 0, result.stderr
    texts = [sample["text"] for sample in read_lines(prepared / "SAMPLE.jsonl")[:4]]
    losses = [
        reference(folder, ids, dtype)[:-1].gather(1, torch.tensor(ids)[1:, None])
        for ids in tokenizer(texts)["input_ids"]
    ]
    (line,) = read_lines(tmp_path / "run" / "log.jsonl")
    assert line["loss"] == pytest.approx(-float(torch.cat(losses).mean()), abs=2e-4)
    shutil.rmtree(tmp_path / "run")


def test_the_models_of_the_paper_are_computed_in_the_fast_ways(tiny_model: Path) -> None:
    assert TransformersEngine(tiny_model, "float32", Sampling(3, 0, 1.0)).verdict.path == "batched"
    model = LanguageModel(tiny_model, "cpu", "float32")
    model.loglikelihood(ask((CONTEXT, "A")))
    assert model.scored.verdict.path == "packed"
    assert load_model(tiny_model).config.get_text_config().vocab_size


def scores(model: LanguageModel, contexts: list[str]) -> list[float]:
    return [value for value, _ in model.loglikelihood(ask(*((context, one) for context in contexts for one in "AB")))]


def expected_scores(folder: Path, contexts: list[str]) -> list[float]:
    tokenizer = load_tokenizer(folder)
    letters = [tokenizer(letter)["input_ids"][0] for letter in "AB"]
    logs = [reference(folder, tokenizer(context)["input_ids"])[-1] for context in contexts]
    return [float(row[letter]) for row in logs for letter in letters]


def test_a_head_that_a_checkpoint_holds_apart_is_not_tied(tmp_path: Path) -> None:
    folder = save(tmp_path, LlamaForCausalLM(llama_config()))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    found = scores(LanguageModel(folder, "cpu", "float32"), [CONTEXT])
    assert found == pytest.approx(expected_scores(folder, [CONTEXT]), abs=1e-4)


@pytest.mark.parametrize("stray", ["model_ema.safetensors", "model-00001-of-00013.safetensors"])
def test_weights_beside_those_of_a_checkpoint_are_not_read(stray: str, tmp_path: Path) -> None:
    first = save(tmp_path / "first", LlamaForCausalLM(llama_config()))
    model = LanguageModel(first, "cpu", "float32")
    scores(model, [CONTEXT])
    second = tmp_path / "second"
    shutil.copytree(first, second)
    other = LlamaForCausalLM(llama_config())
    torch.manual_seed(7)
    for part in other.parameters():
        torch.nn.init.normal_(part, std=0.3)
    other.save_pretrained(second)
    shutil.copy(first / "model.safetensors", second / stray)
    assert model.scored.swap(second, None)
    assert scores(model, [CONTEXT]) == pytest.approx(expected_scores(second, [CONTEXT]), abs=1e-4)


def test_a_model_that_changed_its_own_weights_is_loaded_anew(tmp_path: Path) -> None:
    folder = save(tmp_path, LlamaForCausalLM(llama_config()))
    model = LanguageModel(folder, "cpu", "float32")
    assert model.scored.swap(folder, None)
    with torch.no_grad():
        model.model.model.norm.weight.div_(2)  # as RWKV rescales its layers
    assert not model.scored.swap(folder, None)


def melting_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A byte-level tokenizer that makes one token of "(B", and two of "(A"."""
    parts = json.loads(byte_tokenizer(size=560).backend_tokenizer.to_str())
    parts["pre_tokenizer"]["use_regex"] = False
    size = len(parts["model"]["vocab"])
    parts["model"]["vocab"]["(B"] = size
    parts["model"]["merges"].insert(0, ["(", "B"])
    made = Tokenizer.from_str(json.dumps(parts))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>")


def test_all_choices_of_a_question_are_looked_at_and_cut_at_one_place(tmp_path: Path) -> None:
    folder = save(tmp_path, LlamaForCausalLM(llama_config()), melting_tokenizer())
    tokenizer = load_tokenizer(folder)
    contexts = [f"Q: {number}? A: (" for number in range(200)]
    model = LanguageModel(folder, "cpu", "float32")
    found = scores(model, contexts)
    assert model.described()["tokenization"] == "context and choice together"
    for place in (0, 1, 399):
        whole = tokenizer(contexts[place // 2] + "AB"[place % 2])["input_ids"]
        shared = tokenizer(contexts[place // 2])["input_ids"][:-1]  # without the "(" that "(B" takes
        assert whole[: len(shared)] == shared
        logs = reference(folder, whole[:-1])
        wanted = sum(float(logs[at - 1, whole[at]]) for at in range(len(shared), len(whole)))
        assert found[place] == pytest.approx(wanted, abs=1e-4)


def test_a_tokenizer_without_small_letters_has_its_special_tokens(tmp_path: Path) -> None:
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", *"ABCDEQ:"])}
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    ends = [("<s>", 1), ("</s>", 2)]
    plain.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="</s>")
    assert tokens.special_tokens(tokenizer) == ([1], [2])


def test_a_model_s_own_settings_do_not_change_what_a_task_lets_it_write(tmp_path: Path) -> None:
    folder = save(tmp_path, LlamaForCausalLM(llama_config()))
    asked = [Instance("generate_until", {}, (CONTEXT, {"until": [], "max_gen_toks": 12}), 0)]
    expected = LanguageModel(folder, "cpu", "float32").generate_until(asked)
    settings = json.loads((folder / "generation_config.json").read_text())
    settings |= {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "max_new_tokens": 3}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    assert LanguageModel(folder, "cpu", "float32").generate_until(asked) == expected


def test_positions_that_begin_after_the_padding_s_number(tmp_path: Path) -> None:
    sizes = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
    config = transformers.RobertaConfig(vocab_size=600, **{**sizes, "max_position_embeddings": 40}, is_decoder=True)
    folder = save(tmp_path, transformers.RobertaForCausalLM(config))
    model = LanguageModel(folder, "cpu", "float32")
    assert model.max_length == 39
    (found,) = model.loglikelihood(ask((CONTEXT * 3, "A")))
    tokenizer = load_tokenizer(folder)
    logs = reference(folder, tokenizer(CONTEXT * 3)["input_ids"][-39:])[-1]
    assert found[0] == pytest.approx(float(logs[tokenizer("A")["input_ids"][0]]), abs=1e-4)


def test_broken_checkpoints_are_named_and_the_others_are_scored(tmp_path: Path, prepared: Path, inside: Inside) -> None:
    """The others get the same scores as alone. Some broken ones cannot be read, and some are found only in loading."""
    model = save(tmp_path / "model", LlamaForCausalLM(llama_config()))
    run = tmp_path / "run"
    for step in (1, 2, 3, 7):
        shutil.copytree(model, run / f"checkpoint-{step}")
    (run / "checkpoint-1" / "config.json").write_text("{")
    (run / "checkpoint-2" / "generation_config.json").write_text("[]")
    (run / "checkpoint-3" / "tokenizer.json").write_text("{}")
    save(run / "checkpoint-4", LlamaForCausalLM(llama_config()), without=("model.layers.1.mlp.up_proj.weight",))
    odd = LlamaForCausalLM(llama_config())
    save(run / "checkpoint-5", odd)
    odd.model.norm.weight.data[3] = float("nan")
    odd.save_pretrained(run / "checkpoint-5")
    save(run / "checkpoint-6", LlamaForCausalLM(llama_config(num_hidden_layers=1)))
    flags = words("evaluate", model, prepared, tmp_path)
    result = inside("evaluate", *flags, "--checkpoints", run, "--limit", 2)
    assert result.returncode == 2
    lines = result.stderr.splitlines()
    faults = ("config.json", "generation_config.json", "tokenizer", "model.layers.1.mlp.up_proj.weight", "norm.weight")
    assert len(lines) == len(faults), result.stderr
    for step, (fault, line) in enumerate(zip(faults, lines), start=1):
        assert line.startswith(f"main.py: error: run/checkpoint-{step} is not scored: ")
        assert fault in line
    scored = {path.parent.name for path in (tmp_path / "results" / "run").glob("*/sample.json")}
    assert scored == {"checkpoint-6", "checkpoint-7"}
    first, last = (
        read_lines(tmp_path / "results" / name / "sample_samples.jsonl") for name in ("model", "run/checkpoint-7")
    )
    assert [row["loglikelihoods"] for row in first] == [row["loglikelihoods"] for row in last]
    again = inside("evaluate", *flags, "--checkpoints", run, "--limit", 2)
    assert (again.returncode, again.stderr) == (2, result.stderr)
    assert again.stdout.count("done already") == 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_16_bits_rounding_is_no_fault_and_another_computation_is(dtype: str, tmp_path: Path) -> None:
    """Weights of deviation 0.3 make rounding grow from layer to layer."""
    for layers in range(1, 7):
        model = LlamaForCausalLM(llama_config(num_hidden_layers=layers))
        assert scored_path(save(tmp_path / f"llama-{layers}", model), dtype) == ("packed", "sdpa")
    capped = transformers.Gemma2Config(
        vocab_size=600, **SIZES, head_dim=8, attn_logit_softcapping=0.5, query_pre_attn_scalar=8, sliding_window=4096
    )
    path, attention = scored_path(save(tmp_path / "gemma2", transformers.Gemma2ForCausalLM(capped)), dtype)
    assert path != "packed" and attention == "eager"


def test_rounding_that_cannot_be_measured_is_not_taken_for_none_or_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that computes without its embedding module, and one that does not say which module that is."""
    model = LlamaForCausalLM(llama_config()).bfloat16().eval()
    measured = self_check.tolerance_of(model, torch.bfloat16, None)
    assert 0 < measured != self_check.TOLERANCE[torch.bfloat16]
    monkeypatch.setattr(model, "get_input_embeddings", lambda: torch.nn.Embedding(1, 1))
    assert self_check.tolerance_of(model, torch.bfloat16, None) == self_check.TOLERANCE[torch.bfloat16]
    monkeypatch.setattr(model, "get_input_embeddings", lambda: None)
    assert self_check.tolerance_of(model, torch.bfloat16, None) == self_check.TOLERANCE[torch.bfloat16]


def scored_path(folder: Path, dtype: str) -> tuple[str, str]:
    model = LanguageModel(folder, "cpu", dtype)
    model.prepare(0)
    return model.scored.verdict.path, model.scored.verdict.attention
