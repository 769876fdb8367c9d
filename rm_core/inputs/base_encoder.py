"""The part that all encoders share: texts to token ids, within limits and with one BOS.

An encoder needs no weights: a process that only tokenizes does not load a model.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rm_core.config import Kind, TokenizerMode
from rm_core.errors import InputError, InvalidConversationError, TemplateError
from rm_core.inputs.chat_rendering import RenderedPrompt
from rm_core.inputs.chat_template import ChatTemplate
from rm_core.inputs.conversations import get_messages
from rm_core.inputs.prerendered import PrerenderedReader
from rm_core.inputs.text_splitting import TokenBoundaries
from rm_core.inputs.text_tokenizer import DEFAULT_CHECK_INTERVAL, TextTokenizer
from rm_core.inputs.token_count_bound import TokenBound
from rm_core.inputs.warnings import KnownContents
from rm_core.packing import TokenIds, common_prefix_length
from rm_core.types import Encoded, ScoreError, Truncation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONG_TEXT = 65_536
"""Characters. Shorter texts are tokenized in a few milliseconds: errors report their exact
length."""
# Minimum length in characters of a shared prefix whose tokens are kept.
_WORTH_KEEPING = 256
# Default of `max_unbroken_characters`: at least the first number, and per token of `max_length` the
# second number, which is more than a conversation within the limit needs.
_UNBROKEN, _UNBROKEN_PER_TOKEN = 524_288, 8


@dataclass(slots=True)
class SharedPrefix:
    """Prefix shared by the texts of one request, such as a prompt with many answers."""

    # Whether the conversation before or after the current one has its prompt.
    is_repeated: bool = False
    previous_text: str = ""  # the previous text, to compare the next text with
    # The shared prefix, up to a boundary and including its lookahead: the characters after the
    # boundary that make it a boundary.
    text: str = ""
    stop: int = 0  # position of the boundary in `text`
    input_ids: list[int] = field(default_factory=list)  # token ids of `text[:stop]`, without BOS
    # The prompt that was rendered last; None for an input without a chat template.
    prompt: RenderedPrompt | None = None
    # Contents of the messages of the previous conversation, and what `WarningFinder` found in them.
    contents: KnownContents = field(default_factory=dict)


class Encoder(ABC):
    """Turns what a model scores into token ids, for one checkpoint.

    Not thread-safe, since the tokenizer is not.

    Args:
        input_format: everything else that decides what is read, for the digests.

    Attributes:
        probe: a short item, which every model of the kind can score.
        max_unbroken_characters: maximum length of a text without a boundary, which is tokenized at
            once because no position is proven to be safe for a cut. May be changed to any number
            from 131,072, since text with boundaries is tokenized in parts of about half that.
        chat_template: text of the chat template; empty for an input format without one.
        template_sha256: digest of `input_format` and `chat_template`.
        encoding_sha256: digest of input format, chat template and tokenizer. Equal digests mean
            equal token ids.
        prerendered_reader: knows the checkpoint's markers, and reads rendered conversations.
        added_bos: text of the BOS that the tokenizer prepends; empty if it prepends none.
        label_ids: tokens whose logits are the output, for models without a head; else empty.
        omitted_tokens: special tokens that the tokenizer's post-processor would add to a text, and
            that are omitted as in `apply_chat_template(tokenize=True)`. Never contains BOS.
    """

    kind: Kind
    probe: object
    label_ids: tuple[int, ...] = ()
    prerendered_reader: PrerenderedReader

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: ChatTemplate | None,
        input_format: str = "",
        *,
        max_length: int,
        tokenizer_mode: TokenizerMode = "auto",
        tokenizer_check_interval: int = DEFAULT_CHECK_INTERVAL,
    ) -> None:
        self._tokenizer = tokenizer
        self.max_length = max_length
        self.chat_template = chat_template.text if chat_template else ""
        self.template_sha256 = _digest(input_format + self.chat_template)
        # Llama 3.2's default template writes the date into a system header.
        date = chat_template.date if chat_template else None
        self.template_date = None if date is None else date.isoformat()
        self.depends_on_date = date is not None
        dated = (chat_template.all_texts if chat_template else "") + (self.template_date or "")
        definition = tokenizer.backend_tokenizer.to_str()
        self.encoding_sha256 = _digest(input_format + dated + definition)
        # Disables the padding, truncation and special tokens that the tokenizer file configures.
        tokenizer("", padding=False, truncation=False)
        self._backend = tokenizer.backend_tokenizer
        self.text_tokenizer = TextTokenizer(
            self._backend, definition, tokenizer_mode, tokenizer_check_interval
        )
        self._strips_bos, self.omitted_tokens = self._find_added_special_tokens()
        self.added_bos = str(tokenizer.bos_token) if self._strips_bos else ""
        self._bound = TokenBound(tokenizer)
        self._boundaries = TokenBoundaries(tokenizer)
        self.max_unbroken_characters = max(_UNBROKEN, _UNBROKEN_PER_TOKEN * max_length)
        self._check_cancelled: Callable[[], None] = _do_nothing

    @abstractmethod
    def encode(
        self,
        conversation: object,
        truncation: Truncation = "error",
        max_length: int | None = None,
        shared: SharedPrefix | None = None,
    ) -> Encoded:
        """Encode one input of the model; the subclasses describe which.

        Raises:
            InputError: it cannot be scored.
        """

    @abstractmethod
    def count_prompt_tokens(self, input_ids: TokenIds) -> int:
        """Count the first tokens that other sequences may share, for the prefix cache."""

    def find_token(self, text: str) -> int | None:
        """Return the id of the token with this text, or None."""
        token_id: int | None = self._backend.token_to_id(text)
        return token_id

    def encode_all(
        self,
        conversations: Iterable[object],
        truncation: Truncation = "error",
        max_length: int | None = None,
        *,
        shared: SharedPrefix | None = None,
        check_cancelled: Callable[[], None] | None = None,
    ) -> list[Encoded | ScoreError]:
        """Encode inputs in order. One that cannot be encoded gives an error.

        `shared` is for all calls of one request. `check_cancelled` is called before each
        conversation and before each part of a long text; its exceptions propagate. The other
        arguments are those of `encode`.
        """
        shared = shared or SharedPrefix()
        self._check_cancelled = check_cancelled or _do_nothing
        encoded: list[Encoded | ScoreError] = []
        try:
            for conversation, shared.is_repeated in _find_repeated(conversations):
                self._check_cancelled()
                try:
                    encoded.append(self.encode(conversation, truncation, max_length, shared))
                except InputError as error:
                    encoded.append(ScoreError.from_exception(error))
        finally:
            self._check_cancelled = _do_nothing
        return encoded

    def strip_bos(self, input_ids: Sequence[int]) -> list[int]:
        """Remove every BOS from the start of token ids."""
        bos = self._tokenizer.bos_token_id
        start = next((i for i, token in enumerate(input_ids) if token != bos), len(input_ids))
        return list(input_ids[start:])

    def compute_offsets(self, encoded: Encoded) -> list[tuple[int, int]] | None:
        """Return start and end of each token in `encoded.text`, in characters.

        A BOS that the tokenizer added has equal start and end. Tokens that are bytes of one
        character share its range, as do those of an image. None if the text that `right`
        truncation left has other tokens.
        """
        with convert_panics():
            encoding = self._backend.encode(encoded.text, add_special_tokens=False)
        offsets = [(0, 0)] * self._strips_bos + encoding.offsets
        ids = self._prepend_bos(encoding.ids)
        for placed in encoded.images:
            if ids[placed.start : placed.start + 1] != [placed.image.placeholder_id]:
                return None
            ids[placed.start : placed.start + 1] = placed.image.token_ids
            offsets[placed.start : placed.start + 1] = (
                offsets[placed.start : placed.start + 1] * placed.image.num_tokens
            )
        return offsets if ids == list(encoded.input_ids) else None

    def find_ends(self, text: str, ends: Sequence[int]) -> list[int]:
        """Return the indices of the tokens in which characters of a text end, without BOS.

        The positions `ends`, after the characters, are ascending.
        """
        with convert_panics():
            encoding = self._backend.encode(text, add_special_tokens=False)
        stops = [stop for _, stop in encoding.offsets]
        return [bisect.bisect_left(stops, end) for end in ends]

    def _tokenize(
        self, text: str, limit: int, shared: SharedPrefix | None = None
    ) -> tuple[list[int], bool]:
        """Tokenize a text like `apply_chat_template(tokenize=True)`, but with exactly one BOS.

        Returns:
            Token ids, and whether they cover the whole text. If not, they are the token ids of the
            start of the text, and exceed the limit.
        """
        max_tokens = limit - self._strips_bos
        input_ids, stop = self._reuse_shared_ids(text, max_tokens, shared) if shared else ([], 0)
        stop = self._extend(input_ids, text, stop, max_tokens)
        if not input_ids:
            raise TemplateError("the chat template rendered the conversation to an empty text")
        return self._prepend_bos(input_ids), stop == len(text)

    def _tokenize_end(self, text: str, limit: int) -> tuple[list[int], bool]:
        """Like `_tokenize`, but from the end of the text. BOS is prepended in any case."""
        if len(text) < LONG_TEXT:
            return self._tokenize(text, limit)
        input_ids: list[int] = []
        start = len(text)
        for start, stop in self._boundaries.split_from_end(text, self.max_unbroken_characters):
            input_ids = self._tokenize_range(text, start, stop) + input_ids
            if len(input_ids) > limit:
                break
        return self._prepend_bos(input_ids), start == 0

    def _extend(self, input_ids: list[int], text: str, start: int, max_tokens: int) -> int:
        """Append the ids of `text[start:]`, from a boundary on, until more than `max_tokens`.

        Returns:
            Position in the text up to which it was tokenized.
        """
        if len(text) < LONG_TEXT:
            input_ids += self._tokenize_range(text, start, len(text))
            return len(text)
        for begin, stop in self._boundaries.split(text, start, self.max_unbroken_characters):
            if len(input_ids) > max_tokens:
                return begin
            input_ids += self._tokenize_range(text, begin, stop)
        return len(text)

    def _reuse_shared_ids(
        self, text: str, max_tokens: int, shared: SharedPrefix
    ) -> tuple[list[int], int]:
        """Return the ids of the prefix that a text shares with the previous one, and its end."""
        if len(text) < _WORTH_KEEPING:
            return [], 0
        if not (shared.text and text.startswith(shared.text)):
            common = common_prefix_length(shared.previous_text, text)
            boundary = self._boundaries.find_before(text, _WORTH_KEEPING, common - 1)
            shared.previous_text = text
            if boundary is None:
                return [], 0
            input_ids: list[int] = []
            shared.stop = self._extend(input_ids, text[:boundary], 0, max_tokens)
            shared.text = text[: shared.stop + self._boundaries.get_lookahead(text, shared.stop)]
            shared.input_ids = input_ids
        return [*shared.input_ids], shared.stop

    def _tokenize_range(self, text: str, start: int, stop: int) -> list[int]:
        """Tokenize `text[start:stop]` between two boundaries, without BOS."""
        self._check_cancelled()
        if stop - start > self.max_unbroken_characters:
            raise InvalidConversationError(
                f"{stop - start:,} characters of the conversation contain no position where the "
                "text can certainly be cut without changing a token, such as a space after a word, "
                f"and at most {self.max_unbroken_characters:,} characters are tokenized at once; "
                "shorten the text, or break it with spaces or lines"
            )
        with convert_panics():
            return self.text_tokenizer.tokenize(text[start:stop])

    def _begins_with_bos(self, text: str) -> bool:
        """Return whether the first token is BOS, from the text or added by the tokenizer."""
        starts = [token for token in self._tokenizer.get_added_vocab() if text.startswith(token)]
        return self._strips_bos or max(starts, key=len, default="") == self._tokenizer.bos_token

    def _prepend_bos(self, input_ids: list[int]) -> list[int]:
        return [int(self._tokenizer.bos_token_id), *input_ids] if self._strips_bos else input_ids

    def _prove_too_long(self, text: str, limit: int) -> int | None:
        """Return a lower bound of a long text's tokens above the limit; None if it may fit."""
        if len(text) < LONG_TEXT:
            return None
        with convert_panics():
            return self._bound.prove_too_long(text, limit)

    def _decode(self, input_ids: Sequence[int]) -> str:
        with convert_panics():
            text = self._tokenizer.decode(list(input_ids), clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text.removeprefix(self.added_bos)

    def _find_added_special_tokens(self) -> tuple[bool, tuple[str, ...]]:
        """Return whether the tokenizer prepends BOS, and which other tokens it would add."""
        # If the tokenizer does not add BOS, a BOS of the template is the only one and is kept.
        added: list[int] = self._tokenizer("", add_special_tokens=True)["input_ids"]
        bos = self._tokenizer.bos_token_id
        adds_bos = bos is not None and added[:1] == [bos]
        return adds_bos, tuple(self._tokenizer.convert_ids_to_tokens(added[adds_bos:]))


def _find_repeated(conversations: Iterable[object]) -> Iterator[tuple[object, bool]]:
    """Yield each conversation, and whether the one before or after it seems to have its prompt."""
    is_repeated = False
    for current, following in itertools.pairwise(itertools.chain(conversations, (None,))):
        texts, following_texts = _get_prompt_texts(current), _get_prompt_texts(following)
        is_followed = bool(texts) and texts == following_texts
        yield current, is_repeated or is_followed
        is_repeated = is_followed


def _get_prompt_texts(conversation: object) -> list[str]:
    """Return the string contents of all messages but the last of an unvalidated conversation."""
    messages = get_messages(conversation)
    if not isinstance(messages, list | tuple):
        return []
    contents = [m.get("content") for m in messages[:-1] if isinstance(m, dict)]
    return [content for content in contents if isinstance(content, str)]


@contextlib.contextmanager
def convert_panics() -> Iterator[None]:
    """Convert exceptions of the tokenizer to `InvalidConversationError`."""
    try:
        yield
    except BaseException as error:
        # The tokenizer raises a bare Exception. A panic in Rust (such as a regular expression that
        # reached a limit) is a BaseException.
        if type(error).__name__ not in ("Exception", "PanicException"):
            raise
        raise InvalidConversationError(
            f"the checkpoint's tokenizer failed on this conversation ({type(error).__name__}); "
            "change the text, or fix tokenizer.json"
        ) from error


def format_too_long(num_tokens: str, limit: int, advice: str) -> str:
    """Return the message of a `ConversationTooLongError`."""
    return f"the conversation has {num_tokens} tokens and the limit is {limit}; {advice}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _do_nothing() -> None:
    pass
