"""What we ask of a tokenizer: a part of transformers' own face, written down. No import of it: that
costs a second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, overload


class Tokenizer(Protocol):
    """A `transformers.PreTrainedTokenizerBase`."""

    eos_token_id: int  # `check_tokenizer` refuses one without
    pad_token_id: int | None
    unk_token_id: int | None
    sep_token: str | None
    name_or_path: str
    all_special_ids: list[int]
    chat_template: str | None

    def __call__(
        self,
        text: str,
        text_pair: str | None = None,
        *,
        add_special_tokens: bool = True,
        return_token_type_ids: bool | None = None,
    ) -> Mapping[str, list[int]]: ...

    def __len__(self) -> int: ...

    def decode(
        self,
        ids: Sequence[int],
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> str: ...

    @overload
    def convert_ids_to_tokens(self, ids: int) -> str: ...

    @overload
    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]: ...

    def get_added_vocab(self) -> dict[str, int]: ...

    def apply_chat_template(
        self, conversation: Sequence[Mapping[str, str]], **options: object
    ) -> str: ...
