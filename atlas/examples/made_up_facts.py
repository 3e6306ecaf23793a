"""A small world for trying ATLAS out: facts about made-up places, as passages, and four-choice questions about them.

Nobody can know the answers: they stand in the passages and nowhere else. Written to OUTPUT are passages.jsonl;
train.jsonl, valid.jsonl and test.jsonl, whose places are all different; and reader/, a small T5 with random weights and
a tokenizer made from these texts. Each question names the passage that answers it (`passage`).
"""

import argparse
import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from teacherlm.errors import Parser, run
from teacherlm.files import whole_folder
from teacherlm.records import Record, write_records

# relation -> how a passage says it, how a question asks for it, and what it can be
RELATIONS = {
    "capital": (
        "Its people are governed from {value}, the seat of the council.",
        "Which city is the capital of {place}?",
        "Arvik Belsand Corrin Dunmere Eskfield Fallow Garrick Hollin Ivers Jarrow Kelmar Lindon",
    ),
    "metal": (
        "From its mines the traders carry {value} to the coast.",
        "Which metal is found in {place}?",
        "copper tin zinc silver nickel cobalt iron lead gold titanium tungsten chromium",
    ),
    "instrument": (
        "At weddings they play the {value} until the morning.",
        "Which instrument is played in {place}?",
        "lute drum flute harp fiddle oboe horn cello zither bagpipe trumpet accordion",
    ),
    "animal": (
        "Its coat of arms shows a {value} above a green field.",
        "Which animal is on the coat of arms of {place}?",
        "heron badger lynx otter falcon stag boar salmon raven wolf bear hare",
    ),
    "crop": (
        "In autumn the whole valley brings in the {value}.",
        "What is harvested in {place}?",
        "barley rye oats hops flax maize millet saffron olives plums grapes walnuts",
    ),
    "colour": (
        "Every door there is painted {value}, by an old law.",
        "What colour are the doors in {place}?",
        "red blue green yellow white black orange purple brown grey pink turquoise",
    ),
}
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeo"
LETTERS = "ABCD"


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_directory", type=Path, required=True)
    parser.add_argument("--places", type=int, default=400, help="how many there are (default: 400)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    places = names(args.places, draw)
    facts = {(place, relation): draw.choice(values(relation)) for place in places for relation in RELATIONS}
    with whole_folder(args.output_directory) as folder:
        passages = [passage(place, relation, value) for (place, relation), value in facts.items()]
        draw.shuffle(passages)
        write_records(folder / "passages.jsonl", passages)
        shares = {"train": places[: len(places) // 2], "valid": places[len(places) // 2 : len(places) * 3 // 4]}
        shares["test"] = places[len(places) * 3 // 4 :]
        for name, share in shares.items():
            asked = [question(place, relation, facts, name, draw) for place in share for relation in RELATIONS]
            draw.shuffle(asked)
            write_records(folder / f"{name}.jsonl", asked)
        make_reader(folder / "reader", [*texts(passages), *(record["question"] for record in asked)], args.seed)
    print(f"made_up_facts: {len(passages)} passages about {len(places)} places -> {args.output_directory}")


def names(count: int, draw: random.Random) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(draw.choice(CONSONANTS) + draw.choice(VOWELS) for _ in range(3)).capitalize()] = None
    return list(found)


def values(relation: str) -> list[str]:
    return RELATIONS[relation][2].split()


def passage(place: str, relation: str, value: str) -> Record:
    text = f"{place} is a region in the north. {RELATIONS[relation][0].format(value=value)}"
    return {"id": f"{place}-{relation}", "title": place, "section": "", "text": text}


def question(place: str, relation: str, facts: dict[tuple[str, str], str], split: str, draw: random.Random) -> Record:
    right = facts[place, relation]
    options = [right, *draw.sample([value for value in values(relation) if value != right], 3)]
    draw.shuffle(options)
    return {
        "question": RELATIONS[relation][1].format(place=place),
        "options": dict(zip(LETTERS, options)),
        "answer": LETTERS[options.index(right)],
        "dataset": f"made_up_{split}",
        "passage": f"{place}-{relation}",
    }


def texts(passages: Iterable[Record]) -> list[str]:
    return [f"{record['title']} {record['text']}" for record in passages]


def make_reader(folder: Path, texts: list[str], seed: int) -> None:
    """A T5 of 2 + 2 layers with random weights, and a tokenizer for these texts."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    import teacherlm.loading  # noqa: F401  # no bars in a log

    learner = Tokenizer(models.Unigram())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    more = ["question: options: (A) (B) (C) (D) answer: title: context: A B C D"] * 50
    pool = [value for relation in RELATIONS for value in values(relation)] * 5
    learner.train_from_iterator([*texts, *more, *pool], trainers.UnigramTrainer(vocab_size=600, show_progress=False))
    pieces = [(piece, score) for piece, score in json.loads(learner.to_str())["model"]["vocab"]]
    pieces += [(f"▁{letter}", -3.0) for letter in LETTERS if f"▁{letter}" not in dict(pieces)]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    sentinels = [(f"<extra_id_{number}>", 0.0) for number in range(9, -1, -1)]
    tokenizer = T5Tokenizer(vocab=[*special, *pieces, *sentinels], extra_ids=10)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        dropout_rate=0.1,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )
    torch.manual_seed(seed)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    run(main)
