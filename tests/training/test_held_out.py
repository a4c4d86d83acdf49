"""When an answer to a held-out question is right."""

import pytest

from prismatic.training.held_out import Item, correct


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("Red.", "red", True),
        (" yes ", "Yes", True),
        ("red circle", "red", False),
        ("[0.1, 0.1, 0.5, 0.5]", "[0.1, 0.1, 0.5, 0.5]", True),
        ("[0.1, 0.1, 0.5, 0.31]", "[0.1, 0.1, 0.5, 0.5]", True),  # a little more than half of it
        ("[0.1, 0.1, 0.5, 0.29]", "[0.1, 0.1, 0.5, 0.5]", False),  # a little less
        ("[0.5, 0.1, 0.1, 0.5]", "[0.1, 0.1, 0.5, 0.5]", False),  # no box
        ("at [0.1, 0.1, 0.5, 0.5]", "[0.1, 0.1, 0.5, 0.5]", False),
        ("[0.1, 0.1, 0.5, 0.5]", "left", False),
    ],
)
def test_text_is_right_when_equal_and_a_box_when_it_overlaps_by_half(answer, expected, right):
    assert correct(answer, Item(0, "a", ({"from": "human", "value": "?"},), expected)) == right
