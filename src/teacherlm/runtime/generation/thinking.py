"""What a chat model thinks before its answer, and the answer alone."""

from dataclasses import replace

from teacherlm.catalog.chat_templates import ANSWER, THINKING
from teacherlm.runtime.generation import Completion, Failure


def without_thinking(completion: Completion, num_tokens: int) -> Completion | Failure:
    """The answer of a chat model without what it thought before, and without blanks around it.

    Returns:
        The completion, or a failure if the model did not come to an answer.
    """
    text, thinking = completion.text, completion.thinking
    if ANSWER in text:
        thought, _, text = text.partition(ANSWER)
        thinking = thinking or thought.strip().removeprefix(THINKING)
    elif text.lstrip().startswith(THINKING) or (thinking and not text.strip()):
        why = f" within {num_tokens} tokens" if completion.ended == "length" else ""
        return Failure(completion.prompt, f"the thinking did not end{why}")
    return replace(completion, text=text.strip(), thinking=thinking.strip())
