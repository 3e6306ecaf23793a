"""Make a small world for a demonstration of ATLAS: passages with facts about made-up places, and four-choice questions.

The answers are only in the passages, so no model can know them. The program writes passages.jsonl; train.jsonl,
valid.jsonl and test.jsonl, which have no place in common; and reader/, a small T5 with random weights and a tokenizer
for these words. The field `passage` of each question is the id of the passage with the answer.
"""

import random
import re
from dataclasses import dataclass
from pathlib import Path

import teacherlm.runtime.loading  # noqa: F401  # it switches progress bars off in log files
from teacherlm.atlas.demo.small_reader import make_reader
from teacherlm.core.files import whole_folder
from teacherlm.core.flags import flag, parse
from teacherlm.core.records import Record, write_records
from teacherlm.core.terminal import plural

# Maps each relation to (the sentence of a passage, the question, the possible values).
RELATIONS = {
    "capital": (
        "Its people are governed from {value}, the seat of the council.",
        "Which city is the capital of {place}?",
        "Arvik Belsand Corrin Dunmere",
    ),
    "metal": (
        "From its mines the traders carry {value} to the coast.",
        "Which metal is found in {place}?",
        "copper tin zinc silver",
    ),
    "instrument": (
        "At weddings they play the {value} until the morning.",
        "Which instrument is played in {place}?",
        "lute drum flute harp",
    ),
    "animal": (
        "Its coat of arms shows a {value} above a green field.",
        "Which animal is on the coat of arms of {place}?",
        "heron badger lynx otter",
    ),
    "crop": (
        "In autumn the whole valley brings in the {value}.",
        "What is harvested in {place}?",
        "barley rye oats hops",
    ),
    "colour": (
        "Every door there is painted {value}, by an old law.",
        "What colour are the doors in {place}?",
        "red blue green yellow",
    ),
}
CONSONANTS, VOWELS = "bdgkmnrt", "ao"
LETTERS = "ABCD"
PROMPT = f"question options answer title context {' '.join(LETTERS)}"


@dataclass(frozen=True)
class WorldFlags:
    """The size of the world, and where it is written."""

    output_directory: Path = flag(help="the folder to write to")
    places: int = flag(400, help="number of places (default: 400)")
    seed: int = flag(0, help="seed of the random numbers (default: 0)")


def main() -> None:
    flags = parse(WorldFlags, __doc__, example="teacherlm made-up-facts --output_directory world --places 400")
    draw = random.Random(flags.seed)
    places = names(flags.places, draw)
    facts = {(place, relation): draw.choice(values(relation)) for place in places for relation in RELATIONS}
    with whole_folder(flags.output_directory) as folder:
        passages = [passage(place, relation, value) for (place, relation), value in facts.items()]
        draw.shuffle(passages)
        write_records(folder / "passages.jsonl", passages)
        splits = {"train": places[: len(places) // 2], "valid": places[len(places) // 2 : len(places) * 3 // 4]}
        splits["test"] = places[len(places) * 3 // 4 :]
        for name, members in splits.items():
            questions = [question(place, relation, facts, name, draw) for place in members for relation in RELATIONS]
            draw.shuffle(questions)
            write_records(folder / f"{name}.jsonl", questions)
        syllables = [consonant + vowel for consonant in CONSONANTS for vowel in VOWELS]
        make_reader(folder / "reader", words(), syllables, flags.seed)
    said = f"{plural(len(passages), 'passage')} about {plural(len(places), 'place')}"
    print(f"made_up_facts: {said} -> {flags.output_directory}")


def names(count: int, draw: random.Random) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(draw.choice(CONSONANTS) + draw.choice(VOWELS) for _ in range(3)).capitalize()] = None
    return list(found)


def values(relation: str) -> list[str]:
    return RELATIONS[relation][2].split()


def passage(place: str, relation: str, value: str) -> Record:
    text = RELATIONS[relation][0].format(value=value)
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
        "passages": [passage(place, relation, right)],
    }


def words() -> list[str]:
    """All words except names. Each is one token of the reader."""
    sentences = [part for relation in RELATIONS.values() for part in relation]
    found = re.findall("[A-Za-z]+", " ".join([PROMPT, *sentences]))
    return [word for word in dict.fromkeys(found) if word not in ("place", "value")]
