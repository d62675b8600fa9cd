import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.sound.waveform import Columns, Waveform

FOUR = Columns(Waveform(kind="waveform", hop_length=4))
WHOLE = Columns(Waveform(kind="waveform", hop_length=4, rest="nan"))


def test_samples_stand_in_columns_in_their_order() -> None:
    columns = FOUR(np.arange(10, dtype=np.float32))
    np.testing.assert_array_equal(columns, [[0, 4], [1, 5], [2, 6], [3, 7]])
    np.testing.assert_array_equal(columns.T.ravel(), np.arange(8))  # as the graph puts them in a row again


def test_nan_tells_where_a_clip_ends_within_a_column() -> None:
    columns = WHOLE(np.arange(6, dtype=np.float32))
    np.testing.assert_array_equal(columns, [[0, 4], [1, 5], [2, np.nan], [3, np.nan]])
    assert [WHOLE.frontend.n_frames(n) for n in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]
    assert not np.isnan(WHOLE(np.zeros(8, np.float32))).any()


@pytest.mark.parametrize("form", [FOUR, WHOLE])
@given(n=st.integers(1, 60), cuts=st.lists(st.integers(0, 60), max_size=6), least=st.integers(4, 20))
def test_a_waveform_in_blocks_is_that_of_the_whole_clip(
    form: Columns, n: int, cuts: list[int], least: int
) -> None:
    samples = np.random.default_rng(n).normal(size=n).astype(np.float32)
    stream = form.stream(min_samples=least)
    blocks = [
        each for part in np.split(samples, sorted(min(cut, n) for cut in cuts)) for each in stream.push(part)
    ]
    blocks += stream.close()
    padded = np.pad(samples, (0, max(0, least - n)))
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), form(padded))


def test_what_fills_no_column_is_too_short() -> None:
    with pytest.raises(ValueError, match="3 samples are too few"):
        FOUR(np.zeros(3, np.float32))
    stream = FOUR.stream()
    assert list(stream.push(np.zeros(3, np.float32))) == []
    with pytest.raises(ValueError, match="3 samples are too few"):
        list(stream.close())
