"""Chat students: which students are trained and scored through their chat templates.

A checkpoint of a chat student has the file RECORD, so that it is scored as it was trained wherever its folder goes. A
checkpoint without the file was trained on plain text, as the paper's students are.
"""

import json
from pathlib import Path

from teacherlm.catalog.chat_templates import template_size
from teacherlm.core.errors import UserError
from teacherlm.core.files import whole_file
from teacherlm.core.json_files import require_object

RECORD = "chat_student.json"
"""The file in a checkpoint that says that the student was trained through its chat template."""
TRAINED = "trainer_state.json"
"""A file that every checkpoint of this project has."""


def write_record(folder: Path) -> None:
    """Say in a checkpoint's folder that its student is a chat student."""
    with whole_file(folder / RECORD) as file:
        json.dump({"chat": True}, file)
        file.write("\n")


def is_recorded(folder: Path) -> bool:
    """Whether the model in a folder was trained as a chat student.

    Raises:
        UserError: the record has another form.
    """
    return (folder / RECORD).is_file() and bool(require_object(folder / RECORD, {"chat": bool})["chat"])


def with_template(folder: Path, chosen: str) -> bool:
    """Whether a model gets conversations, by its template.

    Args:
        chosen: "true", "false", or "auto": if the tokenizer in the folder has a chat template.

    Raises:
        UserError: "true" was chosen, and the tokenizer has no chat template.
    """
    if chosen == "false":
        return False
    has_template = template_size(folder) > 0
    if chosen == "true" and not has_template:
        raise UserError(f"--chat true: the tokenizer in {folder} has no chat template; use --chat false")
    return has_template


def chat_of(folder: Path, chosen: str) -> bool:
    """Whether the model in a folder is scored through its chat template.

    Args:
        chosen: "true", "false", or "auto": as it was trained. A model without a record is scored on plain text.

    Raises:
        UserError: it is to be scored through its chat template, and its tokenizer has none.
    """
    if chosen == "auto":
        return is_recorded(folder) and with_template(folder, "true")
    return with_template(folder, chosen)


def difference(folder: Path, is_chat: bool) -> str:
    """What to say if a model is not used in the way in which it was trained; "" if it is, or if that is not known."""
    if is_recorded(folder) and not is_chat:
        return f"{folder} was trained as a chat student; here it gets plain text, not conversations"
    if is_chat and not is_recorded(folder) and (folder / TRAINED).is_file():
        return f"{folder} was trained on plain text; here it gets conversations (--chat)"
    return ""


def name_of_result(name: str, is_chat: bool) -> str:
    """The name of the results of a model that is not a checkpoint. The results of both ways lie side by side."""
    return f"{name}_chat" if is_chat else name
