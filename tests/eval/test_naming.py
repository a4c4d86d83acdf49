"""Which option an answer names: letters alike, conclusions before what leads to them, numbers, and any text at all."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.scoring.naming import find_choice

CARS, SIDES, NUMBERS = ["red car", "blue car"], ["left", "right"], ["3", "2", "1", "0"]
TEMPLATES = [
    "{}", "({})", "{}.", "**{}**", "[{}]", "{}) it is so", "Option {}", "Option {} is correct.", "option {}",
    "{} is the correct answer.", "{} is correct because it is nearer.", "The answer is {}", "Answer: {}",
    "**Answer:** {}", "The answer is {} because it is nearer.", "The answer is: {}. It is so.", "I choose {} since it",
    "I would pick {}, as shown.", "The correct option is {} as shown.", "My choice is {}", "{}\nIt is seen there.",
    "{}, because it is nearer.", "{} - it lies there", "Look at it. So it must be ({}).", "Look. Option {}.",
    "\\boxed{{{}}}", "<answer>{}</answer>", "I think {} is nearer.", "The correct answer is\n\n{}.",
    "{} as it is nearer",
    "Final answer: {}", "The answer would be {}.", "{} seems right.", "It is not ({other}) but ({}).",
    "Option {other} is wrong. Option {} fits.",
]  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("choices", [CARS, ["a thing", "a dog"]])
def test_letters_are_read_alike(template, choices):
    """ "A" is no article where it is a letter."""
    assert [find_choice(template.format(x, other=o), choices) for x, o in ("AB", "BA")] == [0, 1]


@pytest.mark.parametrize(
    ("text", "choices", "choice"),
    [
        ("B\nThe camera is on the left of the road.", SIDES, 1),
        ("B, because the camera is on the left.", SIDES, 1),
        ("B - the ball left the hand", SIDES, 1),
        ("The answer is: B. It is on the left", SIDES, 1),
        ("A\n\nExplanation: the blue car is far away.", CARS, 0),
        ("A, B", SIDES, None),
        ("Both A and B are there.", CARS, None),
        ("A dog is there.", CARS, None),
        ("Answer: A dog.", ["cat", "dog"], 1),
        ("My choice: a dog.", ["cat", "dog"], 1),
        ("Point B is closer to the camera.", ["A is closer", "B is closer"], 1),
    ],
)
def test_a_letter_that_leads_is_the_answer(text, choices, choice):
    assert find_choice(text, choices) == choice


@pytest.mark.parametrize(
    ("text", "choices", "choice"),
    [
        ("The red car and the blue car are visible. The answer is the red car.", CARS, 0),
        ("Both left and right are possible, but the answer is on the left.", SIDES, 0),
        ("(B) is wrong: the answer is the red car. The blue car is far away.", CARS, 0),
        ("The coffee table.", ["table", "coffee table", "sofa"], 1),
        ("The answer is the coffee table.", ["table", "coffee table", "sofa"], 1),
        ("A coffee table near a table", ["table", "coffee table"], None),
        ("It is not left. It is right.", SIDES, 1),
        ("It is to the right rather than to the left.", SIDES, 1),
        ("It isn't on the left.", SIDES, None),
        ("Left. The right side is free.", SIDES, 0),
        ("Yes, there is no obstacle.", ["Yes", "No"], 0),
        ("No, yes it is not.", ["Yes", "No"], 1),
        ("No obstacle is there.", ["Yes", "No"], 1),
        ("It is open.", ["open", "not open"], 0),
        ("It is not open.", ["open", "not open"], 1),
    ],
)
def test_what_is_concluded_decides(text, choices, choice):
    assert find_choice(text, choices) == choice


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("2.5", None), ("2nd", None), ("12", None), ("1,200", None), ("There are three.", 0), ("Two", 1), ("none", 3),
        ("There are 2 and not one.", 1), ("The number of right turns is 1.\n\n1. Start at S\n2. Turn right.", 2),
        ("There is 1 right turn. Step by step: 2 cells down, then 3 cells right.", 2), ("1. Go up.\n2. Go down.", None),
        ("No one is there", None), ("Twenty-two", None), ("There are 2 cups and 1 plate.", None), ("2.", 1),
    ],
)  # fmt: skip
def test_numbers_are_read_whole_and_in_words(text, choice):
    assert find_choice(text, NUMBERS) == choice


def test_the_first_number_that_is_meant_is_not_part_of_another():
    assert find_choice("There are two plates and 12 cups.", ["2", "12", "22"]) is None
    assert find_choice("There are twenty-two.", ["2", "20", "22"]) == 2


WORDS = [
    "answer is",
    "Answer:",
    "A",
    "B",
    "a",
    "(",
    ")",
    ".",
    ",",
    "\n",
    "option",
    "not",
    "yes",
    "No",
    "1.",
    "two",
    "-",
]


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.text(), st.lists(st.sampled_from(WORDS)).map(" ".join)),
    st.sampled_from([CARS, NUMBERS, ["Yes", "No"]]),
)
def test_no_text_raises(text, choices):
    assert find_choice(text, choices) in (None, *range(len(choices)))


@pytest.mark.parametrize(
    "part", ["answer is ", "there is no ", "( ", "A, ", "1. x\n", "not the ", "option " * 3, "**", "["]
)
def test_long_texts_take_no_time(part):
    import time

    started = time.perf_counter()
    find_choice(part * (20_000 // len(part)), NUMBERS)
    assert time.perf_counter() - started < 1
