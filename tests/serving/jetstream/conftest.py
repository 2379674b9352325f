from __future__ import annotations

import pytest

from comem_jax.chat import ChatFormat
from comem_jax.models import Qwen3
from serving.text import TokenBytes
from tests.serving.conftest import WINDOW
from tests.serving.jetstream.faulty import Faulty


@pytest.fixture(scope="package")
def compiled(model: Qwen3, chat_format: ChatFormat) -> Faulty:
    """The one engine of these tests, of the servers' shapes, so that little is compiled."""
    return Faulty(model, slots=4, window=WINDOW, eos_ids=chat_format.eos_ids)


@pytest.fixture
def engine(compiled: Faulty) -> Faulty:
    compiled.mend()
    return compiled


@pytest.fixture
def tokens(chat_format: ChatFormat) -> TokenBytes:
    return TokenBytes(chat_format.tokenizer)
