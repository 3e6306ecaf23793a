"""Tiny chat models: a tiny model with a chat template of a given kind."""

import shutil
from pathlib import Path

from transformers import AutoTokenizer

TURNS = "{% for message in messages %}[{{ message.role }}]{{ message.content }}</s>{% endfor %}"
ANSWER = "{% if add_generation_prompt %}[assistant]{% endif %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
TEMPLATES = {
    "with BOS": "{{ bos_token }}" + TURNS + ANSWER,
    "without BOS": TURNS + ANSWER,
    "with a switch for thinking": TURNS
    + ANSWER
    + "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}",
    "that opens the thinking": TURNS + ANSWER + "{% if add_generation_prompt %}<think>\n{% endif %}",
    "that refuses a system message": NO_SYSTEM + TURNS + ANSWER,
    "that leaves out a system message": TURNS.replace("%}[", "%}{% if message.role != 'system' %}[").replace(
        "</s>", "</s>{% endif %}"
    )
    + ANSWER,
}


def with_template(model: Path, folder: Path, template: str) -> Path:
    """A copy of a tiny model with a chat template, and with its end-of-text token as the token that begins texts."""
    shutil.copytree(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = tokenizer.eos_token  # the model has no row for a further token
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder
