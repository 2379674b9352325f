from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from comem_jax.errors import UserError
from serving.text import Detokenizer, StopMatcher, TokenBytes

PIECES = st.lists(st.text("abc", max_size=4), max_size=8)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def tokens(tokenizer: Tokenizer) -> TokenBytes:
    return TokenBytes(tokenizer)


def pushed(tokens: TokenBytes, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokens)
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@given(data=st.data())
def test_any_tokens_give_the_fully_decoded_text(tokens: TokenBytes, tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=30))
    assert "".join(pushed(tokens, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@given(text=st.text())
def test_real_text_never_comes_as_half_a_character(tokens: TokenBytes, tokenizer: Tokenizer, text: str) -> None:
    pieces = pushed(tokens, tokenizer.encode(text, add_special_tokens=False).ids)
    assert "".join(pieces) == text.replace("<|endoftext|>", "")
    assert text.count("�") == sum(piece.count("�") for piece in pieces)


def test_a_character_comes_with_the_token_that_completes_it(tokens: TokenBytes, tokenizer: Tokenizer) -> None:
    ids = [tokenizer.token_to_id(character) for character in ("å", "±", "±")]  # the bytes of 山
    detokenizer = Detokenizer(tokens)
    assert [detokenizer.push(token) for token in ids] == ["", "", "山"]


def test_special_tokens_have_a_name_but_no_text(tokens: TokenBytes, tokenizer: Tokenizer) -> None:
    end, call = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<tool_call>")
    assert (tokens.text_of(end), tokens.name_of(end)) == (b"", b"<|im_end|>")
    assert tokens.text_of(call) == b"<tool_call>"
    assert tokens.text_of(100_000) == tokens.name_of(100_000) == b""


def test_a_tokenizer_that_is_not_byte_level_is_refused() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(UserError, match="WordPiece"):
        TokenBytes(tokenizer)


def matched(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    matcher, out = StopMatcher(stops), ""
    for piece in pieces:
        out += matcher.push(piece)
        if matcher.stopped:
            return out, True
    return out + matcher.flush(), False


def first_complete(stops: list[str], text: str) -> tuple[str, bool]:
    """The text before the stop string that ends first (of two that end together, the longer)."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@given(stops=STOPS, pieces=PIECES)
def test_stop_strings_are_found_across_any_pieces_and_never_passed_on(stops: list[str], pieces: list[str]) -> None:
    assert matched(stops, pieces) == first_complete(stops, "".join(pieces))


@given(stops=STOPS, pieces=PIECES)
def test_what_is_passed_on_early_is_never_taken_back(stops: list[str], pieces: list[str]) -> None:
    final, _ = first_complete(stops, "".join(pieces))
    matcher, out = StopMatcher(stops), ""
    for piece in pieces:
        if not matcher.stopped:
            out += matcher.push(piece)
            assert final.startswith(out)


def test_only_a_possible_beginning_of_a_stop_string_is_held_back() -> None:
    matcher = StopMatcher(["\n\n", "STOP"])
    assert [matcher.push(piece) for piece in ("one\n", "two S", "TO", "RE")] == ["one", "\ntwo ", "", "STORE"]
