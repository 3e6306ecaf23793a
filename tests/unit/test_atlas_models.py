"""Reader and retriever, compared with T5 and BERT in plain PyTorch in float64, one text at a time."""

import json
from pathlib import Path

import pytest
import torch
from support.atlas_models import make_passages, make_questions, make_tiny_bert, make_tiny_t5
from support.plain_models import PlainBert, PlainT5
from transformers.modeling_outputs import BaseModelOutput

from teacherlm.atlas import multiple_choice, reader, retriever
from teacherlm.core.errors import UserError
from teacherlm.runtime.loading import load_tokenizer

TEXT = "{query} title: {title} context: {text}"


@pytest.fixture(scope="module", params=[True, False], ids=["gated", "first"])
def t5(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> reader.Reader:
    folder = make_tiny_t5(tmp_path_factory.mktemp("t5"), gated=request.param)
    return reader.Reader(reader.load_reader(folder).eval(), load_tokenizer(folder), text_maxlength=60)


def texts_of(t5: reader.Reader, n_context: int) -> tuple[list[list[str]], list[str]]:
    """Questions with passages of very different lengths, one of which is cut off, and one of which occurs twice."""
    passages = make_passages(6)
    texts, targets = [], []
    for question in make_questions(5):
        query = multiple_choice.prompt(t5.tokenizer, question)
        texts.append([TEXT.format(query=query, **passage) for passage in passages[:n_context]])
        targets.append(multiple_choice.target(question))
        passages = passages[1:] + passages[:1]
    texts[1][-1] = texts[1][0]
    return texts, targets


@torch.no_grad()
def test_logits_are_those_of_one_passage_at_a_time_in_float64(t5: reader.Reader) -> None:
    texts, targets = texts_of(t5, 3)
    target = reader.make_target(t5, targets, None)
    logits = reader.decode(t5, reader.encode(t5, texts), target).logits
    plain = PlainT5(t5.model)
    losses = []
    for place, (passages, text) in enumerate(zip(texts, targets)):
        tokens = [t5.tokenizer(text)["input_ids"] for text in passages]
        encoded = torch.cat([plain.encode([*row[:59], 1] if len(row) > 60 else row) for row in tokens])
        written = t5.tokenizer(text)["input_ids"]
        expected = plain.decode(encoded, [0, *written[:-1]])
        torch.testing.assert_close(logits[place].double(), expected, atol=1e-4, rtol=0)
        losses.append(-torch.log_softmax(expected, dim=-1)[range(len(written)), written])
    torch.testing.assert_close(
        reader.target_losses(logits, target.labels).double(), torch.stack(losses), atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_padding_the_passages_to_the_maximum_changes_nothing(t5: reader.Reader) -> None:
    texts, targets = texts_of(t5, 2)
    target = reader.make_target(t5, targets, None)
    logits = reader.decode(t5, reader.encode(t5, texts), target).logits
    for place in range(len(texts)):
        padded = t5.tokenizer(texts[place], truncation=True, max_length=60, padding="max_length", return_tensors="pt")
        states = t5.model.encoder(**padded).last_hidden_state.flatten(0, 1)[None]
        there = padded["attention_mask"].flatten()[None] - 1  # -1 for padding
        alone = reader.decode(
            t5, reader.Encoded(states, there), reader.Target(*(part[place, None] for part in target))
        ).logits
        torch.testing.assert_close(alone[0], logits[place], atol=1e-5, rtol=0)


@torch.no_grad()
def test_what_is_generated_is_the_greedy_choice_of_the_logits(t5: reader.Reader) -> None:
    texts, targets = texts_of(t5, 2)
    encoded = reader.encode(t5, texts)
    written = reader.generate(t5, encoded, max_length=6)
    decoded = reader.decode(t5, encoded, reader.make_target(t5, targets, None), use_cache=True)
    assert reader.generate(t5, encoded, 6, decoded.past_key_values) == written
    plain = PlainT5(t5.model)
    for passages, text in zip(texts, written):
        encoded = torch.cat(
            [plain.encode(t5.tokenizer(p, truncation=True, max_length=60)["input_ids"]) for p in passages]
        )
        tokens = [0]
        while len(tokens) < 6 and tokens[-1] != 1:
            tokens.append(plain.decode(encoded, tokens)[-1].argmax().item())
        assert text == t5.tokenizer.decode(tokens, skip_special_tokens=True)


@torch.no_grad()
def test_a_decoder_prompt_is_read_and_not_predicted(t5: reader.Reader) -> None:
    """Compared with one question at a time in float64: the target's logits and losses, and the text after a prompt."""
    texts, targets = texts_of(t5, 2)
    prompts = ["the king of the city", "", "the answer is", "of", "king king king"]
    target = reader.make_target(t5, targets, None, prompts)
    encoded = reader.encode(t5, texts)
    logits = reader.decode(t5, encoded, target).logits
    losses = reader.target_losses(logits, target.labels)
    after = reader.generate_after(t5, encoded, prompts, max_length=5)
    plain, places = PlainT5(t5.model), multiple_choice.letter_places(t5.tokenizer, target.labels.tolist())
    for question, passages in enumerate(texts):
        begun = t5.tokenizer(prompts[question], add_special_tokens=False)["input_ids"]
        written = t5.tokenizer(targets[question])["input_ids"]
        states = torch.cat(
            [plain.encode(t5.tokenizer(p, truncation=True, max_length=60)["input_ids"]) for p in passages]
        )
        expected = plain.decode(states, [0, *begun, *written[:-1]])[len(begun) :]
        found = logits[question, len(begun) : len(begun) + len(written)]
        torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=0)
        loss = -torch.log_softmax(expected, dim=-1)[range(len(written)), written].sum()
        torch.testing.assert_close(losses[question].sum().double(), loss, atol=1e-4, rtol=0)
        assert places[question] == len(begun) + 1
        tokens = [0, *begun]
        while len(tokens) < 5 + len(begun) and tokens[-1] != 1:
            tokens.append(plain.decode(states, tokens)[-1].argmax().item())
        assert after[question] == t5.tokenizer.decode(tokens[1 + len(begun) :], skip_special_tokens=True)


@torch.no_grad()
def test_beams_lengths_and_their_penalty_are_the_library_s(t5: reader.Reader) -> None:
    """Each question alone, with its passages encoded one at a time. A cache exists, but beams cannot use it."""
    texts, targets = texts_of(t5, 2)
    encoded = reader.encode(t5, texts)
    cache = reader.decode(t5, encoded, reader.make_target(t5, targets, None), use_cache=True).past_key_values
    greedy = reader.generate(t5, encoded, 9, cache)
    found = {}
    for form in ({"num_beams": 3}, {"num_beams": 3, "length_penalty": -4.0}, {"min_length": 7}):
        found[str(form)] = written = reader.generate(t5, encoded, 9, cache, **form)
        for passages, text in zip(texts, written):
            tokens = [t5.tokenizer(p, truncation=True, max_length=60, return_tensors="pt") for p in passages]
            states = torch.cat([t5.model.encoder(**of).last_hidden_state[0] for of in tokens])[None]
            expected = t5.model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=states), max_length=9, do_sample=False, **form
            )
            assert text == t5.tokenizer.decode(expected[0], skip_special_tokens=True)
            assert "min_length" not in form or expected.shape[1] >= 7
    assert any(written != greedy for written in found.values())


@torch.no_grad()
@pytest.mark.parametrize("pooling", retriever.POOLINGS)
def test_embeddings_are_those_of_one_text_at_a_time_in_float64(pooling: str, tmp_path: Path) -> None:
    folder = make_tiny_bert(tmp_path, pooling)
    made, tokenizer = retriever.load_retriever(folder, untied=False)
    texts = [f"{passage['title']} {passage['text']}" for passage in make_passages(40)]
    found = torch.empty(40, 32)
    for numbers, vectors in retriever.embed(made.eval(), tokenizer, texts, 50, 7, of_passages=True):
        found[numbers] = vectors
    plain = PlainBert(made.query)
    for text, vector in zip(texts, found):
        tokens = tokenizer(text, truncation=True, max_length=50)["input_ids"]
        states = plain.states(tokens)
        expected = {"average": states.mean(0), "sqrt": states.sum(0) / len(tokens) ** 0.5, "cls": states[0]}[pooling]
        torch.testing.assert_close(vector.double(), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_minilm_is_what_sentence_transformers_says_it_is() -> None:
    """Mean pooling and length 1, as in the modules of its folder. Similar texts have similar vectors."""
    from teacherlm.catalog.models import find_model, local_folder

    made, tokenizer = retriever.load_retriever(local_folder(find_model("minilm")), untied=False)
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "The central bank raised its interest rate."]
    vectors = torch.empty(3, 384)
    for numbers, batch in retriever.embed(made.eval(), tokenizer, texts, 64, 8, of_passages=False):
        vectors[numbers] = batch
    assert (made.pooling, made.normalize) == ("average", True)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    near, far = (vectors[0] @ vectors[1]).item(), (vectors[0] @ vectors[2]).item()
    assert near > 0.5 > 0.2 > far
    states = PlainBert(made.query).states(tokenizer(texts[1])["input_ids"]).mean(0)
    torch.testing.assert_close(vectors[1].double(), states / states.norm(), atol=1e-5, rtol=0)


def test_a_retriever_of_two_encoders_begins_as_the_same_one_twice(tmp_path: Path) -> None:
    untied, _ = retriever.load_retriever(make_tiny_bert(tmp_path), untied=True)
    tied, _ = retriever.load_retriever(tmp_path, untied=False)
    assert tied.query is tied.passage and untied.query is not untied.passage
    assert retriever.fingerprint(tied, "{text}", 50) == retriever.fingerprint(untied, "{text}", 50)
    with torch.no_grad():
        untied.query.embeddings.word_embeddings.weight.add_(1)
    assert retriever.fingerprint(tied, "{text}", 50) == retriever.fingerprint(untied, "{text}", 50)
    assert retriever.fingerprint(tied, "{text}", 50) != retriever.fingerprint(tied, "{text}", 51)


def test_a_t5_of_the_hub_has_a_sentencepiece_model_and_no_other_tokenizer(tmp_path: Path) -> None:
    import sentencepiece

    make_tiny_t5(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 100}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    texts = [passage["text"] for passage in make_passages(300)] + ["the (A) (B) (C) (D) <x>: A B C D"] * 300
    special = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "minloglevel": 2}
    prefix = str(tmp_path / "spiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=prefix, vocab_size=110, **special
    )
    theirs = sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")
    ours = load_tokenizer(tmp_path)
    text = "the first king of the city (A) one (B) two <"
    assert ours(text)["input_ids"] == [*theirs.encode(text), 1]
    assert ours("<extra_id_0> A")["input_ids"][0] == 110 + 99  # the sentinels are the last ids, in reverse order


def test_letters_without_tokens_of_their_own_are_refused(t5: reader.Reader) -> None:
    assert len(set(multiple_choice.choice_tokens(t5.tokenizer, "ABCD"))) == 4
    with pytest.raises(UserError, match="does not have a separate token for each of X, Y"):
        multiple_choice.choice_tokens(t5.tokenizer, "XY")
