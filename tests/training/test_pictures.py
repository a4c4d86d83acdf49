import numpy as np
import pytest
import torch
from PIL import Image, ImageColor, ImageFont

from prismatic.data.image_datasets import open_images
from prismatic.training.answer_sheet import SIZE, WIDTH, Answered, draw_answers, wrapped
from prismatic.training.plots import CELL, GAP, TITLE, draw_patches


class Halves(torch.nn.Module):
    """A backbone whose left and right patches differ, whatever it sees."""

    grid, num_prefix_tokens = (4, 4), 1

    def __init__(self):
        super().__init__()
        self.place = torch.nn.Parameter(torch.tensor([1.0, 1, -1, -1]).repeat(4))

    def transform(self, image):
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()

    def forward(self, pixels):
        patches = self.place[:, None] * torch.tensor([3.0, 1.0, 2.0, 0.5])
        return torch.cat([torch.zeros(1, 4), patches])[None].expand(len(pixels), -1, -1)


def test_patches_with_other_features_have_other_colours_and_bad_images_are_left_out(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(b"no image")
    for number in (1, 2):
        Image.new("RGB", (48, 48), "red").save(tmp_path / "images" / f"{number}.png")
    draw_patches(tmp_path / "sheet.png", open_images(str(tmp_path / "images")), {"halves": Halves()})
    sheet = np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)
    side = CELL + GAP
    assert sheet.shape == (2 * (side + TITLE) + GAP, 2 * side + GAP, 3)
    assert (sheet[GAP + TITLE + CELL // 2, GAP + CELL // 2] == (255, 0, 0)).all()
    cell = sheet[GAP + side + 2 * TITLE :, GAP : GAP + CELL][:CELL]
    assert np.abs(cell[:, : CELL // 2] - cell[:1, :1]).max() == 0, "the left half has one colour"
    assert np.abs(cell[:, -1] - cell[:, 0]).max() > 100, "the right half another"


def test_a_sheet_of_answers_holds_whole_questions_and_their_colours(tmp_path):
    font = ImageFont.load_default(SIZE)
    question = "Which of the two things, " + "and of those that lie behind them, " * 5 + "is larger?\nAnswer in a word."
    lines = wrapped(question, font)
    assert " ".join(lines) == " ".join(question.split()) and lines[-1] == "Answer in a word."
    assert max(map(font.getlength, [*lines, *wrapped("x" * 300, font)])) <= WIDTH
    assert "".join(wrapped("x" * 300, font)) == "x" * 300

    image = Image.new("RGB", (64, 32), "blue")
    cell = Answered(image, f"<image>\n{question}", "left", before=("right", False), after=("Left.", True))
    draw_answers(tmp_path / "sheet.png", [cell] * 6)
    sheet = Image.open(tmp_path / "sheet.png")
    texts = len(lines) + 3  # expected, before, after
    assert sheet.width == 5 * (WIDTH + 10) + 10 and sheet.height > 2 * (WIDTH + texts * SIZE)
    colours = {colour for _, colour in sheet.getcolors(100_000)}
    assert {ImageColor.getrgb("darkgreen"), ImageColor.getrgb("firebrick"), (0, 0, 255), (0, 0, 0)} <= colours


@pytest.mark.parametrize(("frame", "rows"), [("image", (32, 95)), ("padded-square", (7, 114))])
def test_boxes_are_drawn_where_the_expected_and_the_last_answer_say(tmp_path, frame, rows):
    """In an image twice as wide as high: fractions of itself, or of the square that it is padded to."""
    image = Image.new("RGB", (460, 230), "blue")
    told, near = "[0.25, 0.28, 0.5, 0.83]", "[0.3, 0.28, 0.5, 0.83]"
    cell = Answered(image, "Where?", told, before=("[0.0, 0.0, 1.0, 1.0]", False), after=(near, True))
    draw_answers(tmp_path / "sheet.png", [cell], frame)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))[SIZE + 4 + 20 :, 10:][: WIDTH // 2, :WIDTH]
    for colour, columns in (("gold", (57, 114)), ("darkgreen", (69, 114))):
        drawn = (sheet == ImageColor.getrgb(colour)).all(-1)
        left = np.flatnonzero(drawn.any(0))[0]
        assert left == columns[0], (colour, left)
        assert np.flatnonzero(drawn.any(0))[-1] <= columns[1]
    every = (sheet != (0, 0, 255)).any(-1).any(1)
    assert (np.flatnonzero(every)[0], np.flatnonzero(every)[-1]) == rows
    assert not (sheet == ImageColor.getrgb("firebrick")).all(-1).any()
