"""Teachers that answer in a conversation: which teachers do, what they are asked, and what of their answer is kept."""

from dataclasses import replace

from teacherlm.catalog.chat_students import with_template
from teacherlm.catalog.models import Model, local_folder
from teacherlm.catalog.prompt_sets import Kind
from teacherlm.runtime.generation import Completion, Failure, Message
from teacherlm.runtime.generation.thinking import without_thinking


def conversation(kind: Kind, prompt: str) -> tuple[Message, ...]:
    """The messages that a chat teacher gets: the system message, the examples, and the prompt."""
    system: tuple[Message, ...] = (("system", kind.system),) if kind.system else ()
    turns = (turn for one in kind.examples for turn in (("user", one.prompt), ("assistant", one.completion)))
    return (*system, *turns, ("user", prompt))


def plain_prompt(kind: Kind, prompt: str) -> str:
    """The text that another teacher completes: the same parts, with empty lines between them."""
    examples = (f"{one.prompt} {one.completion}" for one in kind.examples)
    return "\n\n".join(part for part in (kind.system, *examples, prompt) if part)


def is_chat(chosen: str, teacher: Model) -> bool:
    """Whether the teacher gets its prompts as conversations.

    Args:
        chosen: "true", "false", or "auto": if the teacher's tokenizer has a chat template. A server of unknown kind
            and a GGUF file complete prompts.

    Raises:
        UserError: "true" was chosen, and the tokenizer has no chat template.
    """
    if teacher.server is not None:
        return chosen == "true"
    if chosen == "false" or teacher.texts_from is not None:
        return False
    folder = local_folder(teacher)
    if teacher.serve is not None and not (folder / "tokenizer_config.json").is_file():  # GGUF: its server has both
        return chosen == "true"
    return with_template(folder, chosen)


def explanation_of(completion: Completion, num_tokens: int) -> Completion | Failure:
    """The answer of a chat teacher without what it thought before, as a text that follows the prompt.

    A space stands before the text, so that prompt and text can be joined as those of a completion.

    Returns:
        The completion, or a failure if the teacher did not come to an answer.
    """
    made = without_thinking(completion, num_tokens)
    return made if isinstance(made, Failure) else replace(made, text=made.text and f" {made.text}")
