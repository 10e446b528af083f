"""Prompts as messages of a chat, by the tokenizer's own template.

The prompt of a row is what the user says, an option or an answer is what the assistant says. The template's text around
them is taken from one rendering with marks in place of the messages, so that it is known which text is the template's:
none of its tokens is ever cut. Solved examples in front are earlier turns of the same chat.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from gradless.errors import BadInput
from gradless.lm.checkpoint_files import first_line

USER, ASSISTANT = "gradlessuser{}gradless", "gradlessassistant{}gradless"  # marks that templates leave as they are
OPEN: Final = re.compile(r"<(think|thought|reasoning)>\s*$")
SETTINGS: Final[dict[str, Any]] = {
    "enable_thinking": False,  # the answer follows at once
    "date_string": "26 Jul 2024",
}
SAME_DAY: Final = (
    "{%- macro strftime_now(form) -%}{{ form | replace('%d', '26') | replace('%b', 'Jul') | replace('%B', 'July') "
    "| replace('%m', '07') | replace('%Y', '2024') | replace('%y', '24') }}{%- endmacro -%}"
)
"""In front of a template, for those that say the date: that of Llama's own, so that a prompt is the same every day."""


class Chat(NamedTuple):
    """The text of a chat template around the messages.

    A chat is ``head``, then for each earlier turn its user's text, ``reply``, its assistant's text and ``turn``; then
    the user's text and ``tail``, behind which the assistant answers.
    """

    head: str
    tail: str
    reply: str
    turn: str
    """Empty if the template does not take several turns."""
    end: int | None
    """Token that ends what the assistant says."""
    end_text: str

    def text(self, solved: Sequence[tuple[str, str]], user: str) -> str:
        """Return a chat up to where the assistant is to answer.

        Args:
            solved: what user and assistant said before.
            user: what the user says now.

        Raises:
            BadInput: the template does not take earlier turns.
        """
        if solved and not self.turn:
            raise BadInput("the chat template does not take several turns, which --mode icl needs: use zero-shot")
        turns = "".join(f"{question}{self.reply}{answer}{self.turn}" for question, answer in solved)
        return f"{self.head}{turns}{user}{self.tail}"


def read(tokenizer: Any, source: str) -> Chat:
    """Return the chat template of a tokenizer.

    Args:
        tokenizer: a tokenizer of transformers.
        source: what the user named, for sentences.

    Raises:
        BadInput: there is none, it fails, or it does not hold the messages as they are.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise BadInput(
            f"the tokenizer of {source} has no chat template: leave out --chat, or choose a model that was tuned for "
            "chats (-it, -Instruct, -Chat)"
        )
    head, tail, closing = _one_turn(tokenizer, source)
    reply, turn = _turns(tokenizer, source)
    end = _end(tokenizer, closing)
    text = "" if end is None else str(tokenizer.convert_ids_to_tokens(end))
    return Chat(head, tail, reply, turn, end, text)


def _one_turn(tokenizer: Any, source: str) -> tuple[str, str, str]:
    """Return the text in front of the user's message, between it and the assistant's, and behind that."""
    user, assistant = _message("user", 0), _message("assistant", 0)
    asked = _rendered(tokenizer, source, [user], add_generation_prompt=True)
    answered = _rendered(tokenizer, source, [user, assistant])
    head, tail = _split(asked, source, user)
    _, between, closing = _split(answered, source, user, assistant)
    if OPEN.search(tail) or between.startswith(tail):
        tail = between  # what the assistant says follows at once, without a thought or another channel first
    if OPEN.search(tail):
        raise BadInput(f"the chat template of {source} opens a thought before every answer: choose another model")
    return head, tail, closing


def _turns(tokenizer: Any, source: str) -> tuple[str, str]:
    """Return the text between an earlier user's message and its answer, and between that and the next user's."""
    messages = [_message(role, turn) for turn in range(3) for role in ("user", "assistant")][:-1]
    try:
        parts = _split(_rendered(tokenizer, source, messages, add_generation_prompt=True), source, *messages)
    except BadInput:
        return "", ""
    _, reply, turn, again, next_turn, _ = parts
    return (reply, turn) if (reply, turn) == (again, next_turn) else ("", "")


def _message(role: str, number: int) -> dict[str, str]:
    return {"role": role, "content": (USER if role == "user" else ASSISTANT).format(number)}


def _rendered(tokenizer: Any, source: str, messages: list[dict[str, str]], **options: Any) -> str:
    try:
        template = SAME_DAY + tokenizer.get_chat_template()
        options |= {"chat_template": template, "tokenize": False, **SETTINGS}
        return str(tokenizer.apply_chat_template(messages, **options))
    except Exception as error:  # Jinja's, or what the template itself raises
        raise BadInput(
            f"the chat template of {source} cannot be used ({first_line(error)}): correct chat_template of its "
            "tokenizer, or leave out --chat"
        ) from None


def _split(text: str, source: str, *messages: dict[str, str]) -> list[str]:
    """Return the parts of a text around the messages."""
    parts = []
    for message in messages:
        part, mark, text = text.partition(message["content"])
        if not mark:
            raise BadInput(
                f"the chat template of {source} leaves out what the {message['role']} says: correct chat_template of "
                "its tokenizer, or leave out --chat"
            )
        parts.append(part)
    return [*parts, text]


def _end(tokenizer: Any, closing: str) -> int | None:
    """Return the first special token behind an answer, or the token that ends every text."""
    special = {*tokenizer.all_special_ids}
    special |= {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    tokens = tokenizer(closing, add_special_tokens=False)["input_ids"]
    end = next((token for token in tokens if token in special), tokenizer.eos_token_id)
    return None if end is None else int(end)
