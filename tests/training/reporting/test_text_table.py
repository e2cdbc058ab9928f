from training.reporting.text_table import aligned

ROWS = [("model", "top-1"), ("a", "9.5 %"), ("longest", "71.0")]


def test_columns_are_as_wide_as_their_longest_cells():
    assert aligned(ROWS) == ["model    top-1", "a        9.5 %", "longest  71.0"]


def test_numbers_are_aligned_to_the_right():
    assert aligned([*ROWS, ("none", "")], right=True) == [
        "model    top-1",
        "a        9.5 %",
        "longest   71.0",
        "none",
    ]
