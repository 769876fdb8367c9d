"""Token ids and readouts of step models are those of the authors' code."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trl
import vocabularies
from checkpoints import LLAMA_TEMPLATE, QWEN3_TEMPLATE, SPECS, build_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from rm_core import (
    ConversationTooLongError,
    Encoded,
    InvalidConversationError,
    ModelConfig,
    ModelLoadError,
    PrerenderedText,
    PrerenderedTokens,
    ScoreError,
    StepEncoder,
    StepItem,
    TemplateError,
    load_encoder,
    to_render_json,
)
from rm_core.inputs.steps.qwen_math import SYSTEM_PROMPT

CopyOf = Callable[..., Path]

# The examples of SkyworkAI/skywork-o1-prm-inference, README.md.
EGGS = (
    "Janet’s ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes "
    "muffins for her friends every day with four. She sells the remainder at the farmers' market "
    "daily for $2 per fresh duck egg. How much in dollars does she make every day at the farmers' "
    "market?"
)
FIRST = r"""To determine how much money Janet makes every day at the farmers' market, we need to follow these steps:
1. **Calculate the total number of eggs laid by the ducks per day.**
   Janet's ducks lay 16 eggs per day.
2. **Determine the number of eggs Janet uses each day.**
   - She eats 3 eggs for breakfast every morning.
   - She bakes muffins for her friends every day with 4 eggs.
   So, the total number of eggs used per day is:
   \[
   3 + 4 = 7 \text{ eggs}
   \]
3. **Calculate the number of eggs Janet sells at the farmers' market each day.**
   Subtract the number of eggs used from the total number of eggs laid:
   \[
   16 - 7 = 9 \text{ eggs}
   \]
4. **Determine how much money Janet makes from selling the eggs.**
   She sells each egg for $2, so the total amount of money she makes is:
   \[
   9 \times 2 = 18 \text{ dollars}
   \]
Therefore, the amount of money Janet makes every day at the farmers' market is \(\boxed{18}\)."""  # noqa: E501
SECOND = r"""To find out how much Janet makes every day at the farmers' market, we need to follow these steps:
1. Calculate the total number of eggs laid by the ducks: 
   - Janet's ducks lay 16 eggs per day.
2. Calculate the total number of eggs consumed by Janet and used for baking:
   - Janet eats 3 eggs for breakfast.
   - She bakes 4 eggs for muffins.
   - Total eggs used: 3 (breakfast) + 4 (baking) = 7 eggs.
3. Calculate the remaining number of eggs for sale:
   - Total eggs laid: 16
   - Eggs used: 7
   - Remaining eggs: 16 - 7 = 9 eggs
4. Calculate the total amount of money made at the farmers' market:
   - Price per egg: $2
   - Number of eggs sold: 9
   - Total money made: 9 * $2 = $18
Therefore, Janet makes $\boxed{18}$ dollars every day at the farmers' market."""  # noqa: E501
# Rows: response, number of ids, readouts, start of the digest of the ids as compact JSON.
EXAMPLES = [
    (
        FIRST,
        351,
        (
            *(88, 106, 119, 135, 148, 166, 180, 184, 199, 203, 223),
            *(239, 243, 259, 263, 280, 300, 304, 321, 325, 350),
        ),
        "ca5e35f8d6309c09",
    ),
    (
        SECOND,
        301,
        (88, 103, 117, 134, 145, 158, 183, 195, 205, 213, 229, 245, 254, 264, 280, 300),
        "c66e8430e8f80030",
    ),
]
# Pieces that merge with their neighbours in one tokenizer or another.
PIECES = st.sampled_from(
    [
        *("\n", "\n\n", "\r\n", " ", "a", "?", ".\n", "12", "The sum", "é", "e\u0301", "中", "😀"),
        *("+", "<|im_end|>", "<extra_0>", "ки", " ки", "[", "\ue000", "\ue001", ""),
    ]
)
TEXTS = st.lists(PIECES, max_size=12).map("".join)


def as_json(ids: Any) -> str:
    return json.dumps(list(ids), separators=(",", ":"))


@functools.cache
def tiny(family: str, template: str | None = None, **options: Any) -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer(SPECS[family])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra_0>"]})
    if template is not None:
        tokenizer.chat_template = template
    for name, value in options.items():
        setattr(tokenizer, name, value)
    return tokenizer


@functools.cache
def skywork() -> StepEncoder:
    return StepEncoder(tiny("qwen3", bos_token="<|im_start|>"), "skywork", max_length=4_096)


@functools.cache
def qwen_math() -> StepEncoder:
    return StepEncoder(tiny("qwen3", QWEN3_TEMPLATE), "qwen-math", max_length=4_096)


@functools.cache
def rlhflow() -> StepEncoder:
    return StepEncoder(tiny("llama-v0.2"), "rlhflow", max_length=4_096)


@functools.cache
def sentencepiece() -> PreTrainedTokenizerFast:
    """A tokenizer with the components of Mistral's: BPE over the whole text, `▁` for a space."""
    corpus = ["Step 1: 2 + 2 = 4. ки"] * 50 + ["▁a ▁+ ▁- ▁ки".replace("▁", " ")] * 50
    trained = Tokenizer(models.BPE())
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    trained.normalizer = normalizers.Sequence(steps)
    # Merges within words only, as in a trained vocabulary.
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    state = json.loads(trained.to_str())["model"]
    num = len(state["vocab"])
    names = {f"<0x{byte:02X}>": num + byte for byte in range(256)}
    vocabulary = {**state["vocab"], **names, "<s>": num + 256}
    merges = [tuple(merge) for merge in state["merges"]]
    model = models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteFallback()
    tokenizer.add_special_tokens([AddedToken("<s>", normalized=False, special=True)])
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", num + 256)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


@functools.cache
def math_shepherd() -> StepEncoder:
    return StepEncoder(sentencepiece(), "math-shepherd", max_length=4_096)


@functools.cache
def real_qwen() -> PreTrainedTokenizerFast:
    """The real vocabulary, with what the checkpoints of both families add to it."""
    template = Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja"
    tokenizer = vocabularies.qwen(
        bos_token="<|im_start|>", chat_template=template.read_text(encoding="utf-8")
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra_0>"]})
    return tokenizer


@functools.cache
def real_skywork() -> StepEncoder:
    return StepEncoder(real_qwen(), "skywork", max_length=4_096, tokenizer_mode="tokenizers")


def encode_as_skywork(
    tokenizer: Any, problem: str, response: str
) -> tuple[list[int], tuple[int, ...]]:
    """`prepare_input` of the authors, restated."""
    ids = tokenizer.encode(f"{tokenizer.bos_token}{problem}\n")
    readouts = []
    for line in response.split("\n"):
        ids += [*(tokenizer.encode(line) if line else []), tokenizer.encode("\n")[-1]]
        readouts.append(len(ids) - 1)
    return ids, tuple(readouts)


@pytest.mark.parametrize(("response", "num_tokens", "readouts", "digest"), EXAMPLES)
def test_skywork_examples_have_published_ids(
    response: str, num_tokens: int, readouts: tuple[int, ...], digest: str
) -> None:
    encoded = real_skywork().encode(StepItem(EGGS, response=response))
    assert encoded.num_tokens == num_tokens
    assert encoded.readouts == readouts
    assert hashlib.sha256(as_json(encoded.input_ids).encode()).hexdigest().startswith(digest)
    assert encoded.input_ids[:8] == (151644, 18315, 295, 748, 77778, 10962, 220, 16)
    assert encoded.input_ids[64:66] == (3081, 5267)  # the line feed merged with the question mark
    whole = real_qwen()(f"<|im_start|>{EGGS}\n{response}\n").input_ids
    assert len(whole) < num_tokens, "tokenized at once, other ids are read"


@pytest.mark.parametrize(
    ("response", "ids"),
    [
        ("a\nb", [64, 198, 65, 198]),
        ("a\n\nb", [64, 198, 198, 65, 198]),
        ("a\nb\n", [64, 198, 65, 198, 198]),
        ("", [198]),
    ],
)
def test_skywork_reads_every_line_feed(response: str, ids: list[int]) -> None:
    encoded = real_skywork().encode(StepItem("q?", response=response))
    assert encoded.input_ids == (151644, 80, 5267, *ids)
    assert encoded.readouts == tuple(i + 3 for i, token in enumerate(ids) if token == 198)


@pytest.mark.hypothesis
@given(TEXTS, TEXTS)
def test_skywork_encodes_as_its_authors(problem: str, response: str) -> None:
    encoder = skywork()
    encoded = encoder.encode(StepItem(problem, response=response))
    tokenizer = tiny("qwen3", bos_token="<|im_start|>")
    ids, readouts = encode_as_skywork(tokenizer, problem, response)
    assert (encoded.input_ids, encoded.readouts) == (tuple(ids), readouts)
    assert len(encoded.readouts) == response.count("\n") + 1
    assert encoded.text == f"<|im_start|>{problem}\n{response}\n"
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == encoded.text
    assert encoder.count_prompt_tokens(encoded.input_ids) == encoded.num_tokens


@pytest.mark.hypothesis
@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_skywork_steps_are_the_lines_of_a_response(steps: list[str]) -> None:
    """A step of several lines has the ids of these lines, and one value: at its last line."""
    given_steps = skywork().encode(StepItem("2+2?", tuple(steps)))
    response = skywork().encode(StepItem("2+2?", response="\n".join(steps)))
    assert given_steps.input_ids == response.input_ids
    lasts, line = [], -1
    for step in steps:
        line += step.count("\n") + 1
        lasts.append(line)
    assert given_steps.readouts == tuple(response.readouts[last] for last in lasts)


def test_further_step_continues_token_ids_of_a_beam() -> None:
    for encoder in (skywork(), qwen_math(), math_shepherd(), rlhflow()):
        short = encoder.encode(StepItem("2+2?", ("Add.", "So 4.")))
        longer = encoder.encode(StepItem("2+2?", ("Add.", "So 4.", "The answer is 4.")))
        shared = encoder.count_prompt_tokens(short.input_ids)
        assert shared > short.readout
        assert longer.input_ids[:shared] == short.input_ids[:shared]
        assert longer.readouts[:2] == short.readouts


def test_skywork_counts_the_lines_of_a_step() -> None:
    with pytest.raises(ConversationTooLongError, match="has at least 5002 tokens"):
        skywork().encode(StepItem("2+2?", ("a", "\n" * 5_000)))


def test_skywork_needs_bos_and_no_other_special_tokens() -> None:
    with pytest.raises(ModelLoadError, match=r"no `bos_token`.*<\|im_start\|>"):
        StepEncoder(tiny("qwen3"), "skywork", max_length=100)
    with pytest.raises(ModelLoadError, match="adds <bos> to every text"):
        StepEncoder(tiny("llama-v0.2"), "skywork", max_length=100)


@pytest.mark.parametrize(
    "prompt",
    [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}],
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "2+2?"},
        ],
        [{"role": "assistant", "content": "2+2?"}],
    ],
)
@pytest.mark.parametrize("create", [skywork, math_shepherd])
def test_formats_without_template_refuse_other_prompts_than_a_problem(
    create: Callable[[], StepEncoder], prompt: Any
) -> None:
    with pytest.raises(InvalidConversationError, match="has one problem and its solution"):
        create().encode(StepItem(prompt, response="4"))
    as_message = create().encode(StepItem([{"role": "user", "content": "2+2?"}], response="4"))
    assert as_message == create().encode(StepItem("2+2?", response="4"))


def read_at(tokenizer: Any, encoded: Encoded) -> list[str]:
    """The texts before each readout and after the one before it."""
    starts = (0, *(readout + 1 for readout in encoded.readouts))
    return [
        tokenizer.decode(encoded.input_ids[start:stop], clean_up_tokenization_spaces=False)
        for start, stop in zip(starts, encoded.readouts, strict=False)
    ]


def test_qwen_math_encodes_as_its_model_card() -> None:
    """The card: apply_chat_template, encode, and a mask where the id is that of `<extra_0>`."""
    tokenizer = real_qwen()
    (marker,) = tokenizer.encode("<extra_0>")
    steps = ["Add 2 and 2.\n", "So it is 4. ", "", "\\boxed{4}"]
    messages = [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"},
    ]
    ids = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False))
    encoder = StepEncoder(tokenizer, "qwen-math", max_length=99, tokenizer_mode="tokenizers")
    encoded = encoder.encode(StepItem("2+2?", tuple(steps)))
    assert list(encoded.input_ids) == ids
    assert encoded.readouts == tuple(i for i, token in enumerate(ids) if token == marker)
    assert read_at(tokenizer, encoded)[1:] == steps[1:]


@pytest.mark.hypothesis
@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=5))
def test_qwen_math_reads_only_its_own_markers(problem: str, steps: list[str]) -> None:
    encoder, tokenizer = qwen_math(), tiny("qwen3", QWEN3_TEMPLATE)
    encoded = encoder.encode(StepItem(problem, tuple(steps)))
    messages = [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": problem},
        {"role": "assistant", "content": "".join(f"{step}<extra_0>" for step in steps)},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert encoded.text == text
    assert list(encoded.input_ids) == tokenizer.encode(text)
    assert read_at(tokenizer, encoded)[1:] == steps[1:]
    assert len(encoded.readouts) == len(steps)
    num_typed = (problem + "\0" + "\0".join(steps)).count("<extra_0>")
    warned = [w for w in encoded.warnings if w.startswith("step_marker_in_text:")]
    assert len(warned) == (num_typed > 0)
    assert not warned or f"<extra_0> {num_typed} time(s)" in warned[0]


def test_qwen_math_keeps_the_callers_system_prompt_and_turns() -> None:
    prompt = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "And 3+3?"},
    ]
    encoded = qwen_math().encode(StepItem(prompt, ("6",)))
    assert "Be brief." in encoded.text
    assert SYSTEM_PROMPT not in encoded.text
    assert encoded.text.count("<|im_start|>") == 5
    assert len(encoded.readouts) == 1


def test_qwen_math_needs_its_marker() -> None:
    with pytest.raises(ModelLoadError, match="no added token <extra_0>"):
        StepEncoder(build_tokenizer(SPECS["qwen3"]), "qwen-math", max_length=100)


def test_template_that_drops_steps_is_an_error() -> None:
    shorten = QWEN3_TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'][:99] }}")
    encoder = StepEncoder(tiny("qwen3", shorten), "qwen-math", max_length=4_096)
    with pytest.raises(TemplateError, match="wrote 1 of the 2 ends of steps"):
        encoder.encode(StepItem("2+2?", ("a", "b" * 200)))


@pytest.mark.hypothesis
@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=4))
def test_math_shepherd_encodes_the_whole_text(problem: str, steps: list[str]) -> None:
    tokenizer = sentencepiece()
    encoded = math_shepherd().encode(StepItem(problem, tuple(steps)))
    text = f"{problem} " + "\n".join(f"{step} ки" for step in steps)
    assert encoded.text == text
    assert list(encoded.input_ids) == tokenizer.encode(text)
    assert sorted(set(encoded.readouts)) == list(encoded.readouts)
    assert len(encoded.readouts) == len(steps)
    for step, readout in zip(steps, encoded.readouts, strict=True):
        assert "ки" in tokenizer.decode(encoded.input_ids[readout])
        before = tokenizer.decode(encoded.input_ids[1 : readout + 1])
        assert before.replace("▁", " ").endswith(f"{step} ки")


def test_math_shepherd_reads_where_its_card_does() -> None:
    tokenizer = sentencepiece()
    marker = tokenizer.encode(" ки")[-1]
    encoder = math_shepherd()
    encoded = encoder.encode(StepItem("2+2?", response="Step 1: 2 + 2\n\nStep 2: 4\n"))
    assert encoded.text == "2+2? Step 1: 2 + 2 ки\nStep 2: 4 ки"
    positions = tuple(i for i, token in enumerate(encoded.input_ids) if token == marker)
    assert encoded.readouts == positions
    assert encoder.label_ids == tuple(tokenizer.encode("+ -")[1:])
    typed = encoder.encode(StepItem("Что такое ки и киты?", ("a ки b", "c")))
    positions = tuple(i for i, token in enumerate(typed.input_ids) if token == marker)
    assert typed.readouts == positions[-2:]
    assert any(w.startswith("step_marker_in_text:") for w in typed.warnings)
    with pytest.raises(ModelLoadError, match="no single tokens for ' ки'"):
        StepEncoder(tiny("qwen3"), "math-shepherd", max_length=100)


@pytest.mark.hypothesis
@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=4))
def test_rlhflow_reads_the_token_before_each_reply(problem: str, steps: list[str]) -> None:
    """The authors encode every prefix of the chat, and read the third token from its end."""
    tokenizer = tiny("llama-v0.2")
    encoded = rlhflow().encode(StepItem(problem, tuple(steps)))
    messages: list[dict[str, str]] = []
    readouts = []
    for index, step in enumerate(steps):
        messages.append({"role": "user", "content": step if index else f"{problem} {step}"})
        messages.append({"role": "assistant", "content": "+"})
        ids = tokenizer.apply_chat_template(messages, return_dict=False)
        readouts.append(len(ids) - 3)
    assert list(encoded.input_ids) == ids
    assert encoded.readouts == tuple(readouts)


def test_rlhflow_divides_and_checks_its_input() -> None:
    encoder = rlhflow()
    tokenizer = tiny("llama-v0.2")
    assert [[i] for i in encoder.label_ids] == [
        tokenizer.encode(text, add_special_tokens=False) for text in "+-"
    ]
    divided = encoder.encode(StepItem("2+2?", response=" Add.\n\nSo\n4. \n\n"))
    assert divided == encoder.encode(StepItem("2+2?", ("Add.", "So\n4.", "")))
    prompt = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    with pytest.raises(InvalidConversationError, match="last message before the solution has role"):
        encoder.encode(StepItem(prompt, ("a",)))
    plain = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    with pytest.raises(ModelLoadError, match="special tokens around every reply"):
        StepEncoder(tiny("qwen3", plain), "rlhflow", max_length=100)
    only_last = "{{ messages[-1].content }}"
    with pytest.raises(ModelLoadError, match="does not fit the step format `rlhflow`"):
        StepEncoder(tiny("qwen3", only_last), "rlhflow", max_length=100)


@pytest.mark.parametrize(
    ("response", "steps"),
    [
        ("Add.\n\nSo 4.", ("Add.", "So 4.")),
        ("Add.\n\n\n\nSo 4.\n\n", ("Add.", "So 4.")),
        ("Add.\nSo 4.", ("Add.\nSo 4.",)),
        ("", ("",)),
        (" \n\n", (" \n\n",)),
    ],
)
def test_qwen_math_divides_at_blank_lines(response: str, steps: tuple[str, ...]) -> None:
    divided = qwen_math().encode(StepItem("2+2?", response=response))
    assert divided == qwen_math().encode(StepItem("2+2?", steps))


@pytest.mark.parametrize("create", [skywork, qwen_math, math_shepherd, rlhflow])
def test_conversation_is_a_problem_and_its_solution(create: Callable[[], StepEncoder]) -> None:
    encoder = create()
    question, answer = ({"role": "user", "content": "2+2?"}, "Add.\n\nSo 4.")
    expected = encoder.encode(StepItem("2+2?", response=answer))
    messages = [question, {"role": "assistant", "content": answer}]
    assert encoder.encode(messages) == expected
    assert encoder.encode({"messages": messages}, "left") == expected
    assert encoder.encode_all([messages, [question]])[0] == expected
    for conversation, reason in (
        ([question], "the last message has role 'user'"),
        (messages[1:], "only an answer"),
        ({"messages": messages, "tools": [{"type": "function"}]}, "tools or tool calls"),
        ([question, {**messages[1], "tool_calls": [{}]}], "tools or tool calls"),
        (PrerenderedText("2+2? 4"), "rendered text or token ids"),
        (PrerenderedTokens((1, 2)), "rendered text or token ids"),
    ):
        with pytest.raises(InvalidConversationError, match=reason):
            encoder.encode(conversation)


@pytest.mark.parametrize("create", [skywork, qwen_math, math_shepherd, rlhflow])
@pytest.mark.parametrize("truncation", ["error", "left", "right"])
def test_too_long_solution_is_refused_with_its_length(
    create: Callable[[], StepEncoder], truncation: Any
) -> None:
    encoder = create()
    item = StepItem("2+2?", response="a b\n\nc")
    length = encoder.encode(item).num_tokens
    assert encoder.encode(item, truncation, length).num_tokens == length
    with pytest.raises(ConversationTooLongError) as caught:
        encoder.encode(item, truncation, length - 1)
    assert f"has {length} tokens and the limit is {length - 1}" in caught.value.detail
    assert "nothing is cut off" in caught.value.detail
    for long in ("a b c. " * 20_000, "a b\n\n" * 20_000, "\n\n".join("a" * 30_000)):
        with pytest.raises(ConversationTooLongError, match=r"has at least \d+ tokens"):
            encoder.encode(StepItem("2+2?", response=long), truncation)
    with pytest.raises(ConversationTooLongError, match=r"has at least 5000 tokens"):
        encoder.encode(StepItem("2+2?", ("",) * 5_000), truncation)
    with pytest.raises(ConversationTooLongError, match=r"00,001 pieces, and at most 65,536"):
        encoder.encode(StepItem("2+2?", response="\n\n" * 100_000), truncation)


@pytest.mark.parametrize("create", [qwen_math, rlhflow])
def test_every_private_character_is_an_error_of_the_item(
    create: Callable[[], StepEncoder],
) -> None:
    private = "".join(map(chr, range(0xE000, 0xF900)))
    item, all_but_one = StepItem("2+2?", (private,)), StepItem("2+2?", (private[:-1],))
    error, encoded = create().encode_all([item, StepItem("2+2?", ("4",))])
    assert isinstance(error, ScoreError)
    assert "every private character" in error.message
    assert isinstance(encoded, Encoded)
    with pytest.raises(ConversationTooLongError):  # one is left
        create().encode(all_but_one, max_length=50)


def test_texts_of_items_are_checked() -> None:
    for steps, response, reason in (
        (("a", "\ud800"), None, "step 1 has a lone surrogate"),
        ((5,), None, "step 0 is a number"),
        (["a"], None, "it must be a list of texts"),
        (None, "\ud800", "`response` has a lone surrogate"),
        (None, 5, "`response` is a number"),
    ):
        with pytest.raises(InvalidConversationError, match=reason):
            StepItem("2+2?", steps, response)  # type: ignore[arg-type]


def test_markers_of_templates_are_reported() -> None:
    encoded = skywork().encode(StepItem("2+2?", response="a<|im_end|>\n<|eot_id|>"))
    kinds = [warning.partition(":")[0] for warning in encoded.warnings]
    assert kinds == ["template_markers_in_message", "foreign_template_markers"]
    assert len(encoded.readouts) == 2
    image = [{"role": "user", "content": "2+2?", "images": ["x"]}]
    (warning,) = skywork().encode(StepItem(image, response="4")).warnings
    assert warning.startswith("template_ignores_keys:")


def test_digests_distinguish_formats() -> None:
    encoders = [skywork(), qwen_math(), math_shepherd(), rlhflow()]
    assert len({encoder.template_sha256 for encoder in encoders}) == 4
    assert len({encoder.encoding_sha256 for encoder in encoders}) == 4
    other = StepEncoder(tiny("qwen3", bos_token="<|im_start|>"), "skywork", max_length=99)
    assert other.encoding_sha256 == skywork().encoding_sha256
    assert (skywork().chat_template, qwen_math().chat_template) == ("", QWEN3_TEMPLATE)


def test_render_has_every_readout() -> None:
    encoded = skywork().encode(StepItem("2+2?", response="Add.\n4"))
    rendered = to_render_json(encoded)
    assert rendered["readout_positions"] == list(encoded.readouts)
    assert rendered["readout_position"] == encoded.num_tokens - 1
    assert rendered["steps"] == ["Add.", "4"]
    single = to_render_json(skywork().encode(StepItem("2+2?", ("4",))))
    assert single["readout_positions"] == [single["readout_position"]]


def set_bos(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"bos_token": "<|im_start|>"}))


def test_step_model_without_chat_template_loads(copy_of: CopyOf) -> None:
    folder = copy_of()
    (folder / "chat_template.jinja").unlink()
    config = ModelConfig(str(folder), kind="step", step_format="skywork")
    with pytest.raises(ModelLoadError, match="no `bos_token`"):
        load_encoder(config)
    set_bos(folder)
    encoder = load_encoder(config)
    assert isinstance(encoder, StepEncoder)
    tokenizer = build_tokenizer(SPECS["qwen3"])
    tokenizer.bos_token = "<|im_start|>"
    ids, readouts = encode_as_skywork(tokenizer, "2+2?", "Add.\n4")
    encoded = encoder.encode(StepItem("2+2?", response="Add.\n4"))
    assert (encoded.input_ids, encoded.readouts) == (tuple(ids), readouts)
    with pytest.raises(ModelLoadError, match="no chat template"):
        load_encoder(ModelConfig(str(folder), kind="step", step_format="rlhflow"))


def test_template_with_date_is_dated() -> None:
    dated = "{{ strftime_now('%Y') }}<|eot_id|>" + LLAMA_TEMPLATE
    encoder = StepEncoder(tiny("llama-v0.2", dated), "rlhflow", max_length=100)
    assert encoder.depends_on_date
    assert not rlhflow().depends_on_date
