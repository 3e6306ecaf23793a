"""Chat templates for students, in the manner of known families, and tokenizers that have them.

The tag `generation` marks what a student should learn. It is the library's own, and writes nothing.
"""

from pathlib import Path
from typing import Any

from tokenizers import Regex
from tokenizers.pre_tokenizers import Sequence, Split
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\n' }}
{%- if message.role == 'assistant' %}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
{%- else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{- message['content'] | trim + '<|eot_id|>' }}{%- endgeneration %}
    {%- else %}{{- message['content'] | trim + '<|eot_id|>' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""
GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
{%- if message['role'] == 'assistant' %}
{{- '<start_of_turn>model\n' }}{% generation %}{{ message['content'] | trim + '<end_of_turn>' }}{% endgeneration %}
{%- else %}{{ '<start_of_turn>' + message['role'] + '\n' + message['content'] | trim + '<end_of_turn>' }}{% endif %}
{{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
QWEN3 = """\
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\n') %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.last %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
        {%- generation %}{{- content + '<|im_end|>' }}{%- endgeneration %}
        {{- '\n' }}
    {%- else %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}"""
MISTRAL = """\
{{ bos_token }}{% for message in messages %}
{%- if message.role == 'user' %}{{ '[INST] ' + message.content + '[/INST]' }}
{%- else %}{% generation %}{{ ' ' + message.content | trim + eos_token }}{% endgeneration %}{% endif %}
{%- endfor %}"""
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA, "qwen3": QWEN3, "mistral": MISTRAL}
SPECIAL = {
    "llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "gemma": ["<start_of_turn>", "<end_of_turn>"],
}
"""The special tokens of a template that SmolLM2's tokenizer does not have."""
TOLD = {"llama3": {"date_string": "26 Jul 2024"}, "qwen3": {"enable_thinking": False}}
"""What the library has to tell a template, so that it writes what a student gets."""


def chat_tokenizer(smollm2: Path, family: str) -> Any:
    """SmolLM2's tokenizer with the template of a family. It puts a token before each plain text, as Llama's does."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL.get(family, [])})
    begins = (tokenizer.bos_token, tokenizer.bos_token_id)
    if family in ("llama3", "qwen3"):  # a text such as GPT-2's, "\n\nThe", has other tokens than "\n\n" and "The"
        lines = Split(Regex(r"\s*[\r\n]+|[^\r\n]*"), "isolated")
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence([lines, tokenizer.backend_tokenizer.pre_tokenizer])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{begins[0]} $A", pair=f"{begins[0]} $A $B", special_tokens=[begins]
    )
    tokenizer.chat_template = TEMPLATES[family]
    return tokenizer


def library_tokens(tokenizer: Any, family: str, user: str, assistant: str) -> tuple[list[int], list[int]]:
    """(the tokens of a conversation by the library alone, for each of them 1 if a student should learn it)."""
    made = tokenizer.apply_chat_template(
        [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}],
        return_dict=True,
        return_assistant_tokens_mask=True,
        **TOLD.get(family, {}),
    )
    return made["input_ids"], made["assistant_masks"]
