from benchmarks.soak.damaged import damaged


def test_a_file_can_be_made_again_from_its_number() -> None:
    assert damaged(1234) == damaged(1234) != damaged(1235)
