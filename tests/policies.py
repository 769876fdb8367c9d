"""Chat templates of policies, what they write, and what trainers log of it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jinja2
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rm_core.inputs.chat_formats import ChatFormatName
from rm_core.inputs.conversations import Messages

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen2.5's template adds a system prompt if there is none, so the policy has read it.
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helper.<|im_end|>\n"
    "{% endif %}" + CHATML
)
LLAMA_TURNS = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LLAMA = "<|begin_of_text|>" + LLAMA_TURNS
# Llama 3.1 and later: the template always writes a system turn with dates.
DATED = (
    "<|begin_of_text|>{% if messages[0].role == 'system' %}{% set system = messages[0].content | "
    "trim %}{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n{{ system }}<|eot_id|>" + LLAMA_TURNS
)
GEMMA = (
    "<bos>{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% elif m.role == 'system' %}[SYSTEM_PROMPT] {{ m.content | trim }}[/SYSTEM_PROMPT]"
    "{% else %} {{ m.content | trim }}</s>{% endif %}{% endfor %}"
)
TEMPLATES: dict[str, tuple[ChatFormatName, str]] = {
    "chatml": ("chatml", CHATML),
    "qwen2.5": ("chatml", DEFAULT_SYSTEM),
    "llama3": ("llama3", LLAMA),
    "llama3.1": ("llama3", DATED),
    "gemma": ("gemma", GEMMA),
    "mistral": ("mistral", MISTRAL),
}
JINJA = jinja2.Environment(keep_trailing_newline=True)


def render(name: str, messages: Messages) -> tuple[str, str]:
    """Return text and prompt as a policy reads and writes them."""
    template = JINJA.from_string(TEMPLATES[name][1])
    prompt = template.render(messages=messages[:-1], add_generation_prompt=True)
    text = template.render(messages=messages)
    if name == "mistral":
        assert text.startswith(prompt)
        return text, prompt
    end = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>"}
    content = messages[-1]["content"]
    return prompt + content + end[TEMPLATES[name][0]], prompt


def turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


_SPECIAL = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "[INST]", "[/INST]", "<bos>"),
    *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<start_of_turn>", "<end_of_turn>", "<|eot_id|>"),
    *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
)


@functools.cache
def build_policy(template: str) -> Any:
    """A tokenizer of single bytes with a chat template, and the markers as special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in _SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        bos_token="<s>",
        chat_template=template,
        extra_special_tokens=[*_SPECIAL],
    )


def log_prompt(policy: Any, prompt: Sequence[Any], **options: Any) -> str:
    """Return a prompt as verl and TRL log it: padded, and decoded without special tokens."""
    input_ids = policy.apply_chat_template(
        [*prompt], add_generation_prompt=True, return_dict=False, **options
    )
    decoded = policy.decode([policy.pad_token_id] * 3 + input_ids, skip_special_tokens=True)
    return str(decoded)
