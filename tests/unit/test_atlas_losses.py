"""The losses of reader and retriever and their gradients, compared with plain PyTorch in float64."""

import math

import pytest
import torch
from support.atlas_models import make_passages, make_questions, make_tiny_t5
from support.plain_models import PlainT5

from teacherlm.atlas import losses, multiple_choice, reader
from teacherlm.runtime.loading import load_tokenizer

B, N, D = 3, 4, 16
MAXIMUM = 50


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> reader.Reader:
    """With dropout, which gold scores must not use, and in float64, so that rounding explains no difference."""
    folder = make_tiny_t5(tmp_path_factory.mktemp("t5"), dropout=0.5)
    model = reader.load_reader(folder).double().train()
    return reader.Reader(model, load_tokenizer(folder), MAXIMUM)


Tokens = tuple[list[int], list[int]]
"""(the tokens of a decoder prompt, the tokens of its target)."""


@pytest.fixture(scope="module", params=[None, ["the king of", "", "king"]], ids=["", "prompts"])
def asked(t5: reader.Reader, request: pytest.FixtureRequest) -> tuple[list[list[str]], reader.Target, list[Tokens]]:
    """Texts (B, N), and targets of different lengths, without and with decoder prompts, with the tokens of both."""
    passages = make_passages(N * B, seed=3)
    questions = make_questions(B)
    texts = [
        [f"{question['question']} context: {passage['text']}" for passage in passages[place * N : (place + 1) * N]]
        for place, question in enumerate(questions)
    ]
    targets = [multiple_choice.target(questions[0]), "<extra_id_0> the king of the city", "<extra_id_0> B"]
    made = reader.make_target(t5, targets, None, request.param)
    tokens = [
        (t5.tokenizer(prompt, add_special_tokens=False)["input_ids"], t5.tokenizer(target)["input_ids"])
        for prompt, target in zip(request.param or [""] * B, targets)
    ]
    return texts, made, tokens


def plain_states(t5: reader.Reader, texts: list[list[str]]) -> list[list[torch.Tensor]]:
    plain = PlainT5(t5.model)
    tokens = [[t5.tokenizer(text, truncation=True, max_length=MAXIMUM)["input_ids"] for text in row] for row in texts]
    return [[plain.encode(ids) for ids in row] for row in tokens]


def plain_logprobs(t5: reader.Reader, states: torch.Tensor, tokens: Tokens, temperature: float = 1) -> torch.Tensor:
    begun, target = tokens
    logits = PlainT5(t5.model).decode(states, [0, *begun, *target[:-1]])[len(begun) :] / temperature
    return torch.log_softmax(logits, dim=-1)[range(len(target)), target]


def scores() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(B, N, generator=generator, dtype=torch.float64).requires_grad_()


def kl(scores: torch.Tensor, gold: torch.Tensor) -> torch.Tensor:
    """The KL divergence by its definition, element by element."""
    total = torch.zeros((), dtype=torch.float64)
    for b in range(B):
        q, p = torch.softmax(gold[b], 0), torch.softmax(scores[b], 0)
        for n in range(N):
            total = total + q[n] * (q[n].log() - p[n].log())
    return total / (B * N)


@torch.no_grad()
def plain_gold(mode: str, t5: reader.Reader, texts: list[list[str]], targets: list[Tokens]) -> torch.Tensor:
    gold = torch.empty(B, N, dtype=torch.float64)
    plain = PlainT5(t5.model)
    for b, states in enumerate(plain_states(t5, texts)):
        for n in range(N):
            if mode == "ppmean":
                gold[b, n] = plain_logprobs(t5, states[n], targets[b]).mean()
            elif mode == "loop":
                others = torch.cat([s for place, s in enumerate(states) if place != n])
                gold[b, n] = -plain_logprobs(t5, others, targets[b]).mean()
            else:
                gold[b, n] = plain_attention(plain, states, n, targets[b])
    return gold


def plain_attention(plain: PlainT5, states: list[torch.Tensor], n: int, tokens: Tokens) -> float:
    """A second implementation of the decoder, with what its cross-attention takes from passage n."""
    everything, (begun, target) = torch.cat(states), tokens
    first = sum(len(s) for s in states[:n])
    heads, taken = plain.config.num_heads, 0.0
    seen: list[tuple[str, torch.Tensor]] = []
    attention = plain.attention

    def watched(name: str, x: torch.Tensor, source: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        if name.endswith("EncDecAttention"):
            seen.append((name, x))
        return attention(name, x, source, bias)

    plain.attention = watched
    plain.decode(everything, [0, *begun, *target[:-1]])
    plain.attention = attention
    for name, x in seen:
        query = plain.linear(f"{name}.q", x).view(len(x), heads, -1)
        key = plain.linear(f"{name}.k", everything).view(len(everything), heads, -1)
        value = plain.linear(f"{name}.v", everything).view(len(everything), heads, -1)
        for head in range(heads):
            weights = torch.softmax(query[:, head] @ key[:, head].T, dim=-1)
            for state in range(first, first + len(states[n])):
                taken += (weights[len(begun) :, state].sum() * value[state, head].norm()).item() / heads
    return taken / (256 * len(seen) * len(target))


@pytest.mark.parametrize("mode", ["ppmean", "loop", "evalnormsum"])
def test_distillation_and_its_gradient(t5: reader.Reader, asked: tuple, mode: str) -> None:
    texts, target, targets = asked
    ours, theirs = scores(), scores()
    loss = losses.retriever_loss(mode, t5, texts, target, ours, temperature_score=0.5, temperature_gold=0.1)
    expected = kl(theirs / 0.5, plain_gold(mode, t5, texts, targets) / 0.1)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=0)
    assert t5.model.training
    assert all(weight.grad is None for weight in t5.model.parameters())


def test_emdr_and_its_gradient(t5: reader.Reader, asked: tuple) -> None:
    texts, target, targets = asked
    ours, theirs = scores(), scores()
    loss = losses.retriever_loss("emdr", t5, texts, target, ours, temperature_score=0.5, temperature_gold=2.0)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for b, states in enumerate(plain_states(t5, texts)):
        prior = torch.softmax(theirs[b] / 0.5, dim=0)
        with torch.no_grad():
            likelihoods = [plain_logprobs(t5, states[n], targets[b], temperature=2.0).exp() for n in range(N)]
        for t in range(len(targets[b][1])):
            total = total - torch.log(sum(prior[n] * likelihoods[n][t] for n in range(N)))
            count += 1
    expected = total / count
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=0)


def test_scores_are_inner_products_over_the_root_of_the_dimension() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, passages = torch.randn(B, D, generator=generator), torch.randn(B, N, D, generator=generator)
    found = losses.retriever_scores(queries, passages)
    for b in range(B):
        for n in range(N):
            assert found[b, n].item() == pytest.approx((queries[b] @ passages[b, n]).item() / math.sqrt(D), abs=1e-6)


def test_the_reader_s_loss_is_the_mean_over_all_target_tokens(t5: reader.Reader, asked: tuple) -> None:
    texts, target, targets = asked
    t5.model.eval()
    loss = losses.reader_loss(reader.decode(t5, reader.encode(t5, texts), target).logits, target.labels)
    with torch.no_grad():
        every = [plain_logprobs(t5, torch.cat(s), tokens) for s, tokens in zip(plain_states(t5, texts), targets)]
    assert loss.item() == pytest.approx(-torch.cat(every).mean().item(), abs=1e-6)
    t5.model.train()


@pytest.mark.parametrize(("paper", "name"), [("pdist", "ppmean"), ("adist", "evalnormsum")])
def test_the_paper_s_names_mean_the_same(t5: reader.Reader, asked: tuple, paper: str, name: str) -> None:
    texts, target, _ = asked
    both = [losses.retriever_loss(mode, t5, texts, target, scores(), 0.1, 0.1).item() for mode in (paper, name)]
    assert both[0] == both[1]


def test_the_loss_falls_as_the_score_of_the_gold_passage_rises() -> None:
    gold = torch.tensor([[9.0, 0.0, 0.0]])
    low, high = (losses.distillation(torch.tensor([[score, 0.0, 0.0]]), gold).item() for score in (0.0, 5.0))
    assert high < low
