"""Questions about images with their answers before and after training, for the eye."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from prismatic.text.parsing import boxes_in_image
from vision_backbones.files import replacing

COLUMNS, WIDTH, GAP, SIZE = 5, 230, 10, 12  # cells in a row; pixels of a cell, between cells, and of letters
RIGHT, WRONG, EXPECTED_BOX = "darkgreen", "firebrick", "gold"
LEGEND = (
    ("held-out questions; answer:", "black"),
    ("right", RIGHT),
    ("wrong", WRONG),
    ("expected box", "darkgoldenrod"),
)
LONGEST = {"question": 2000, "answer": 200}  # characters


@dataclass(frozen=True)
class Answered:
    """A question about an image, the expected answer, and both answers: text, and whether it is right."""

    image: Image.Image
    question: str
    expected: str
    before: tuple[str, bool]
    after: tuple[str, bool]


def draw_answers(path: Path, samples: Sequence[Answered], box_frame: str = "image") -> None:
    """Writes a sheet of cells, each an image above its whole question and the answers, with a legend on top.

    Boxes in the expected answer and in the one after training are drawn; their numbers are fractions of `box_frame`.
    """
    font = ImageFont.load_default(SIZE)
    cells = [_lines(sample, font) for sample in samples]
    rows = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
    line = SIZE + 4
    heights = [WIDTH + GAP + line * max(map(len, row)) + GAP for row in rows]
    top = line + 2 * GAP
    sheet = Image.new("RGB", (GAP + min(COLUMNS, len(cells)) * (WIDTH + GAP), top + sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    x = GAP
    for text, colour in LEGEND:
        draw.text((x, GAP), text, colour, font)
        x += round(font.getlength(text)) + GAP
    for number, (sample, lines) in enumerate(zip(samples, cells, strict=True)):
        x = GAP + number % COLUMNS * (WIDTH + GAP)
        y = top + sum(heights[: number // COLUMNS])
        sheet.paste(_picture(sample, box_frame), (x, y))
        for place, (text, colour) in enumerate(lines):
            draw.text((x, y + WIDTH + GAP + place * line), text, colour, font)
    with replacing(path) as tmp_path:
        sheet.save(tmp_path, "PNG")


def _picture(sample: Answered, box_frame: str) -> Image.Image:
    """The image in the size of a cell, with the boxes of the expected answer and of the one after training."""
    picture = ImageOps.contain(sample.image.convert("RGB"), (WIDTH, WIDTH), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(picture)
    after, right = sample.after
    for text, colour, width in ((sample.expected, EXPECTED_BOX, 5), (after, RIGHT if right else WRONG, 2)):
        for box in boxes_in_image(text, box_frame, *sample.image.size):
            corners = [round(x * (side - 1)) for x, side in zip(box, picture.size * 2, strict=True)]
            pen.rectangle(corners, outline=colour, width=width)
    return picture


def _lines(sample: Answered, font) -> list[tuple[str, str]]:
    """The text of a cell: lines with their colour."""
    lines = [(line, "black") for line in wrapped(_cut(sample.question.replace("<image>", ""), "question"), font)]
    lines += [(line, "black") for line in wrapped(f"expected: {_cut(sample.expected)}", font)]
    for name, (answer, right) in (("before", sample.before), ("after", sample.after)):
        lines += [(line, RIGHT if right else WRONG) for line in wrapped(f"{name}: {_cut(answer)}", font)]
    return lines


def _cut(text: str, kind: str = "answer") -> str:
    text = text.strip()
    return text if len(text) <= LONGEST[kind] else f"{text[: LONGEST[kind]]}..."


def wrapped(text: str, font, width: int = WIDTH) -> list[str]:
    """Lines of at most `width` pixels; what is too long for one, as in languages without spaces, is cut."""
    lines = []
    for paragraph in filter(str.strip, text.splitlines()):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if font.getlength(longer) <= width:
                line = longer
                continue
            lines += [line] if line else []
            line = ""
            for letter in word:
                if line and font.getlength(line + letter) > width:
                    lines.append(line)
                    line = ""
                line += letter
        lines.append(line)
    return lines
