"""The pocket models: Hugging Face folders made by `make weights` from seeds."""

from pathlib import Path

HERE = Path(__file__).parent
AGENT = HERE / "agent"
MEMORY = HERE / "memory"
TOKENIZER = HERE / "tokenizer"
