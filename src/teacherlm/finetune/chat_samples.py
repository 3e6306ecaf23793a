"""Samples of a chat student as tokens: each is a conversation, and only the assistant's turn has a loss.

The question is the user's turn. What follows ` A:` is the assistant's turn: the answer and the explanations. The
tokenizer's chat template writes the conversation, which is tokenized once. The student learns the assistant's content
and the token that ends its turn. What the template writes after that token changes no loss, and is left out.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from teacherlm.catalog.prompts import completion_start
from teacherlm.catalog.text_parts import ANSWER, PARTS, QUESTION, Spans
from teacherlm.catalog.turns import TURN, split_turns
from teacherlm.core.errors import UserError
from teacherlm.finetune.encoded import EncodedSample, find_completion
from teacherlm.finetune.loss_parts import known_spans, parts_of_tokens, spans_in
from teacherlm.runtime.chat_student import ChatStudent, Conversation


def turns_in(text: str, spans: Spans | None, field: str, where: str) -> tuple[str, str]:
    """(the user's turn, the assistant's turn) of a training text.

    Args:
        spans: the parts of the text, or None if they are unknown. Then the answer's mark says where the question ends.

    Raises:
        UserError: it is not known where the question ends.
    """
    end = int(spans[0][1]) if spans and spans[0][0] == PARTS[QUESTION] else completion_start(text)
    found = None if end is None and text.count(TURN) > 1 else split_turns(text, end)
    if found is None:
        raise UserError(
            f"{where}: --chat: in the field {field!r} it is not known where the question ends and the answer begins; "
            "train on `text`, or on a field KIND_tail, KIND_first or KIND_shuffled, or use --chat false"
        )
    return found


def spans_of_conversation(spans: Spans, first: int, conversation: Conversation) -> Spans:
    """The parts of a conversation.

    The user's turn is the question. The assistant's words before the answer's letter belong to the answer: the student
    has to write them.

    Args:
        spans: the parts of the text that the conversation was made of.
        first: the position in that text at which the assistant's turn begins.
    """
    found: Spans = [[PARTS[QUESTION], conversation.opened]]
    for part, end in spans:
        if int(end) > first:
            place = min(conversation.start + int(end) - first, conversation.end)
            found.append([PARTS[ANSWER] if part == PARTS[QUESTION] else part, place])
    return found


def encode_conversations(
    student: ChatStudent,
    rows: Sequence[Mapping[str, Any]],
    field: str,
    places: Sequence[str],
    max_length: int,
    completion_only: bool,
    with_parts: bool,
) -> list[EncodedSample]:
    """The conversations of rows as tokens.

    Args:
        rows: rows of a dataset with the field, and with COLUMN if there is one.
        places: what messages call each row.
        max_length: maximum number of tokens. A longer conversation loses tokens on the left of the user's turn, then of
            the assistant's turn; what the template writes around them stays.
        completion_only: whether only the answer's letter and what follows it have a loss.
        with_parts: whether it has to be known which part of its text each token belongs to.

    Raises:
        UserError: a row cannot be a conversation, or its tokens do not begin with those that ask for an answer.
    """
    conversations, borders, spans_of_rows = [], [], []
    for row, where in zip(rows, places):
        text = row[field]
        spans = spans_in(row, field, where) if with_parts else known_spans(row, field, where)
        turns = turns_in(text, spans, field, where)
        conversations.append(student.conversation(*turns, where))
        borders.append(len(text) - len(turns[1].lstrip()))
        spans_of_rows.append(spans)
    encoded = student.tokenizer(
        [one.text for one in conversations], add_special_tokens=False, return_offsets_mapping=True
    )
    asked = student.tokenizer([one.text[: one.opened] for one in conversations], add_special_tokens=False)
    found = []
    for number, (conversation, where) in enumerate(zip(conversations, places)):
        ids, offsets = encoded["input_ids"][number], encoded["offset_mapping"][number]
        opened = len(asked["input_ids"][number])
        if ids[:opened] != asked["input_ids"][number]:
            raise UserError(
                f"{where}: --chat: the tokens of the conversation do not begin with those that ask for its answer, so "
                "that the student would be asked in another way than it learned; use --chat false"
            )
        last = next(
            place
            for place in range(opened, len(ids))
            if ids[place] == student.ends and offsets[place][1] > conversation.end
        )
        ids, offsets = ids[: last + 1], offsets[: last + 1]
        skipped = opened
        if completion_only:
            before = conversation.start + find_completion(rows[number], field, where) - borders[number]
            skipped = max(opened, sum(end <= before for _, end in offsets))
        parts = []
        if with_parts:
            spans = spans_of_conversation(spans_of_rows[number] or [], borders[number], conversation)
            parts = parts_of_tokens(spans, offsets, 0, 0)
        of_user = [place for place in range(opened) if is_within(offsets[place], conversation)]
        gone = dropped([*of_user, *range(opened, last)], len(ids) - max_length, len(ids), where)
        found.append(
            EncodedSample(
                ids=without(ids, gone),
                opened=opened - bisect_right(gone, opened - 1),
                skipped=skipped - bisect_right(gone, skipped - 1),
                parts=without(parts, gone),
                tokens=len(ids),
            )
        )
    return found


def is_within(offset: tuple[int, int], conversation: Conversation) -> bool:
    """Whether a token belongs to the content of the user's turn."""
    return conversation.user <= offset[0] and offset[1] <= conversation.user_end


def dropped(contents: list[int], excess: int, count: int, where: str) -> list[int]:
    """The places of the tokens that a long conversation loses, in ascending order.

    Args:
        contents: the places of the tokens that may go, in ascending order.
        excess: number of tokens that have to go.
        count: number of tokens of the conversation.

    Raises:
        UserError: what the template writes around the turns is too long.
    """
    if excess <= 0:
        return []
    if excess > len(contents):
        raise UserError(
            f"{where}: the chat template alone writes {count - len(contents)} tokens; increase --max_source_length"
        )
    return contents[:excess]


def without(values: list[int], gone: list[int]) -> list[int]:
    """The values that are not at these places."""
    if not gone:
        return values
    places = set(gone)
    return [value for place, value in enumerate(values) if place not in places]
