"""Real sounds of tests/fixtures, short ones, and what of them is compared."""

from pathlib import Path

import pytest

FIXTURES = Path(__file__).parents[2] / "fixtures"
DOG = FIXTURES / "dog_bark_44k1_mono.ogg"
DIGIT = FIXTURES / "digit7_8k_mono_pcm16.wav"
WORD = FIXTURES / "keyword_yes_16k_mono_pcm16.wav"
BURP = FIXTURES / "burp_44k1_mono_pcm24.flac"


@pytest.fixture(scope="session")
def sounds() -> dict[str, bytes]:
    """name -> the bytes of a file."""
    return {path.name: path.read_bytes() for path in (DOG, DIGIT, WORD, BURP)}
