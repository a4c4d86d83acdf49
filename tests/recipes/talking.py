"""A picture and questions about it, and what `generate` answers."""

from PIL import Image

QUESTIONS = ["What color is the circle?", "How many objects are there?", "Where is the square?"]


def generated(engine, question, picture, system=None):
    """By the processor and `generate`."""
    inputs = engine.processor.ask([question], [Image.open(picture)])
    ids = engine.model.generate(**inputs, max_new_tokens=30, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return engine.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
