"""Letters painted into AI2D diagrams."""

import json
from pathlib import Path

from eval.data.selection import load_examples
from eval.tasks import get_task


def letter_questions(root: Path) -> Path:
    """An AI2D diagram with letters for two words, and two questions about them."""
    from PIL import Image, ImageDraw

    for folder in ("questions", "annotations", "images"):
        (root / "ai2d" / "ai2d" / folder).mkdir(parents=True)
    image = Image.new("RGB", (400, 300), "lightblue")
    draw = ImageDraw.Draw(image)
    draw.ellipse((40, 60, 160, 180), fill="orange")
    draw.ellipse((240, 60, 360, 180), fill="green")
    draw.text((70, 200), "Sun", fill="black", font_size=24)
    draw.text((270, 200), "Earth", fill="black", font_size=24)
    image.save(root / "ai2d/ai2d/images/7.png")
    text = {
        "T0": {"rectangle": [[65, 200], [125, 230]], "value": "Sun", "replacementText": "A"},
        "T1": {"rectangle": [[340, 230], [265, 200]], "value": "Earth", "replacementText": "B"},
    }
    (root / "ai2d/ai2d/annotations/7.png.json").write_text(json.dumps({"text": text, "arrows": {}}))
    row = {"answerTexts": ["A", "B", "C", "D"], "correctAnswer": 1}
    questions = {
        "Which letter is the planet?": row | {"abcLabel": True, "questionId": "7.png-0"},
        "How many bodies are shown?": row | {"abcLabel": False, "questionId": "7.png-1"},
    }
    (root / "ai2d/ai2d/questions/7.png.json").write_text(json.dumps({"imageName": "7.png", "questions": questions}))
    (root / "ai2d/ai2d/questions/.DS_Store").write_text("stray")
    (root / "ai2d/ai2d_test_ids.csv").write_text("7\n")
    return root


def test_letters_are_painted_over_the_words_they_stand_for(tmp_path):
    import numpy as np
    from PIL import Image

    letter_questions(tmp_path)
    task = get_task("ai2d-abc")
    (example,) = load_examples(task, tmp_path, allow_partial=True)
    assert example.info["letters"] == [["A", [[65, 200], [125, 230]]], ["B", [[340, 230], [265, 200]]]]
    plain = Image.open(tmp_path / example.image)
    before, after = (
        np.asarray(picture).astype(int) for picture in (plain.convert("RGB"), task.image_of(plain, example))
    )
    changed = np.abs(before - after).sum(-1) > 0
    inside = np.zeros_like(changed)
    inside[200:231, 65:126] = inside[200:231, 265:341] = True
    assert not (changed & ~inside).any()  # nothing but the words
    for x1, x2 in ((65, 126), (265, 341)):
        patch = after[200:231, x1:x2]
        assert (patch == 255).all(-1).mean() > 0.6 and (patch < 60).all(-1).sum() > 40  # black on white
    assert get_task("ai2d").image_of is None and len(get_task("ai2d").read(tmp_path, "all")) == 2
