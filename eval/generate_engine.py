"""Other models, and audits: batched answers through `generate`."""

from collections.abc import Sequence

import torch
from PIL import Image

from eval.engine import Answer, Question, SharedPrefixEngine, chosen, too_long
from eval.other_models import PROMPTS, limit_pixels, load_other, set_template
from eval.shared_images import SharedImages
from eval.sharing import sharing_problem
from eval.task import Generate
from prismatic.models.load import find_model
from prismatic.models.padding import padding_problem
from prismatic.text.conversations import encode_prompt
from prismatic.text.prompts import IMAGE_TOKEN
from prismatic.text.rendering import render_prompt
from prismatic.text.speech import speak, template_of

Picture = Image.Image | list[Image.Image]


class PlainEngine:
    """Answers with any Hugging Face image-text-to-text model, through its processor's chat template.

    Args:
        model: The model, on its device, in evaluation mode.
        processor: Its processor.
        batch_size: Questions that are computed at once; 1 is the audit against which batches are checked.

    Raises:
        ValueError: The processor has no chat template, or does not say where images go.
    """

    def __init__(self, model, processor, batch_size: int):
        self.places_images = model.config.model_type in PROMPTS
        set_template(model, processor)
        self.model, self.processor, self.batch_size = model, processor, batch_size
        self.device = next(model.parameters()).device
        processor.tokenizer.padding_side = "left"
        self.shared = SharedImages(model, self._inputs, share=batch_size > 1)
        configs = (model.config, getattr(model.config, "text_config", None))
        self.decodes = any(getattr(config, "is_encoder_decoder", False) for config in configs)

    def prepare(self, image: Picture) -> Picture:
        """The picture, or pictures; processors take them together with their prompts."""
        return image

    def text_of(self, prompt: str, answer: str | None = None, images: int = 1) -> str:
        """A conversation as the model reads it, up to the answer, or with it."""
        if self.model.config.model_type == "prismatic":
            turns = [{"from": "human", "value": prompt}] + ([{"from": "gpt", "value": answer}] if answer else [])
            return IMAGE_TOKEN * images + render_prompt(turns, self.processor.tokenizer)
        parts = [{"type": "image"}] * images + [{"type": "text", "text": prompt}]
        turns = [{"role": "user", "content": parts}]
        if answer:
            turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return self.processor.apply_chat_template(turns, add_generation_prompt=not answer, tokenize=False)

    def option_ids(self, options: Sequence[str]) -> list[list[int]]:
        """Token ids with which each option continues a prompt.

        Raises:
            ValueError: They cannot be told apart from the prompt.
        """
        tokenizer, before = self.processor.tokenizer, self.text_of("Which?")
        if self.decodes:
            return [tokenizer(option, add_special_tokens=False)["input_ids"] for option in options]
        opening = self.text_of("Which?", "OPTION").split("OPTION")[0]
        start = tokenizer(before, add_special_tokens=False)["input_ids"]
        ids = [tokenizer(opening + option, add_special_tokens=False)["input_ids"] for option in options]
        if any(option[: len(start)] != start for option in ids):
            raise ValueError(f"options {', '.join(options)} merge with the prompt's last token and cannot be scored")
        return [option[len(start) :] for option in ids]

    @torch.inference_mode()
    def answer(self, pictures: Sequence[Picture], questions: Sequence[Question]) -> list[Answer]:
        """Answers to `questions` about `pictures` (from `prepare`; a list holds all of a question), in their order."""
        try:
            return self._answers(pictures, questions)
        finally:
            self.shared.forget()

    def _answers(self, pictures: Sequence[Picture], questions: Sequence[Question]) -> list[Answer]:
        problems = [self._problem(len(_listed(pictures[question.image])), question) for question in questions]
        answers: list[Answer | None] = [Answer(error=problem) if problem else None for problem in problems]
        for kind in dict.fromkeys(question.kind for question in questions):
            asked = [n for n, question in enumerate(questions) if question.kind == kind and answers[n] is None]
            for start in range(0, len(asked), self.batch_size):
                part = asked[start : start + self.batch_size]
                some = [questions[number] for number in part]
                solve = self._generate if isinstance(kind, Generate) else self._choose
                for number, answer in zip(part, solve([pictures[q.image] for q in some], some, kind), strict=True):
                    answers[number] = answer
        return answers

    def _problem(self, images: int, question: Question) -> str | None:
        """Why a question cannot be asked, where processors do not say so themselves."""
        if self.places_images and images != 1:
            return f"{type(self.model).__name__} takes one image a question, this has {images}"
        if self.model.config.model_type != "prismatic":
            return None
        new = question.kind.max_new_tokens if isinstance(question.kind, Generate) else 1
        more = (images - 1) * self.processor.num_image_tokens
        text = len(encode_prompt(question.prompt, self.processor.tokenizer))
        return too_long(self.model, self.processor, text + more, new)

    def _read(self, pictures, questions: list[Question]) -> dict:
        if self.model.config.model_type == "prismatic":
            return self._placed(self.processor.ask([q.prompt for q in questions], list(pictures)))
        texts = [self.text_of(q.prompt, images=len(_listed(p))) for p, q in zip(pictures, questions, strict=True)]
        return self.shared.inputs(pictures, texts)

    def _inputs(self, pictures, texts: list[str]) -> dict:
        bos = self.processor.tokenizer.bos_token
        once = {"add_special_tokens": False} if bos and texts[0].startswith(bos) else {}  # templates may write BOS
        if self.places_images:  # between which and the text padding on the left would stand
            once["padding_side"] = "right"
        images = [_listed(picture) for picture in pictures]
        inputs = self.processor(images=images, text=texts, padding=True, return_tensors="pt", **once)
        return self._placed(_padded_left(inputs) if self.places_images else inputs)

    def _placed(self, inputs) -> dict:
        dtype = next(self.model.parameters()).dtype
        return {k: v.to(self.device, dtype) if v.is_floating_point() else v.to(self.device) for k, v in inputs.items()}

    def _generate(self, pictures, questions, kind) -> list[Answer]:
        inputs = self._read(pictures, questions)
        tokens = self.model.generate(**inputs, max_new_tokens=kind.max_new_tokens, do_sample=False)
        new = tokens if self.decodes else tokens[:, inputs["input_ids"].shape[1] :]
        return [Answer(text.strip()) for text in self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def _choose(self, pictures, questions, kind) -> list[Answer]:
        inputs = self._read(pictures, questions)
        options = self.option_ids(kind.options)
        if self.decodes:
            scores = self._decoded(inputs, options)
        elif all(len(option) == 1 for option in options):
            scores = self.shared.end(inputs).float()[:, torch.tensor(options, device=self.device).flatten()]
        else:
            scores = self.shared.log_probabilities(inputs, options)
        return [chosen(kind, row) for row in scores.softmax(-1).tolist()]

    def _decoded(self, inputs: dict, options: list[list[int]]) -> torch.Tensor:
        """Log probabilities `[rows, options]` of options as the first tokens that a decoder says."""
        config = getattr(self.model, "language_model", self.model).config
        scores = []
        for option in options:
            start = torch.tensor([config.decoder_start_token_id, *option[:-1]], device=self.device)
            said = {"decoder_input_ids": start.expand(len(inputs["input_ids"]), -1)}
            logits = self.model(**inputs, **said).logits.float().log_softmax(-1)
            scores.append(logits[:, range(len(option)), option].sum(1))
        return torch.stack(scores, dim=1)


def _listed(picture: Picture) -> list[Image.Image]:
    return picture if isinstance(picture, list) else [picture]


def _padded_left(inputs: dict) -> dict:
    """The inputs with the padding of each row moved to its left."""
    order = inputs["attention_mask"].argsort(dim=1, stable=True)
    return dict(inputs) | {name: inputs[name].gather(1, order) for name in ("input_ids", "attention_mask")}


def load_engine(
    name: str,
    *,
    dtype: torch.dtype,
    device,
    batch_size: int,
    strict: bool = False,
    prompt_style: str = "auto",
    base: str | None = None,
    max_pixels: int | None = None,
    say=print,
):
    """The engine for a model: ours share what questions have in common, others answer through `generate`.

    Args:
        name: What `prismatic.load` takes, or a folder or Hugging Face id of any image-text-to-text model.
        dtype: Of the weights.
        device: Where they go.
        batch_size: Rows that are computed at once.
        strict: One question at a time, nothing shared.
        prompt_style: Name or file of a chat template; "auto" keeps the model's own.
        base: Where what LoRA adapters adapt lies now, if it was moved.
        max_pixels: To how many pixels larger pictures are scaled down; None leaves that to the image processor.
        say: Takes a line on what cannot be shared.

    Raises:
        ValueError: There is no such model, it is incomplete or has no chat template, its processor needs a package that
            is absent, or it does not know `max_pixels`.
    """
    import prismatic

    if _is_other(name):
        model, processor = load_other(name, dtype)
    else:
        model, processor = prismatic.load(name, dtype=dtype, base=base)
    if max_pixels is not None:
        limit_pixels(processor, max_pixels)
    model = model.to(device).eval()
    if isinstance(model, prismatic.PrismaticForConditionalGeneration):
        speak(model, processor, prompt_style)
    elif (template := template_of(prompt_style)) is not None:
        processor.chat_template = template
    if strict or not isinstance(model, prismatic.PrismaticForConditionalGeneration):
        return PlainEngine(model, processor, 1 if strict else batch_size)
    problem = sharing_problem(model, processor)
    if not problem:
        return SharedPrefixEngine(model, processor, batch_size)
    alone = padding_problem(model, processor)
    say(
        f"questions share no computation with this LLM ({model.config.text_config.model_type}): {problem}; using "
        + (f"generate, one question at a time, because in a padded batch {alone}" if alone else "generate in batches")
    )
    return PlainEngine(model, processor, 1 if alone else batch_size)


def _is_other(name: str) -> bool:
    """Whether `name` is a model, here or on the hub, of another kind than ours."""
    from transformers import AutoConfig

    here = find_model(name)
    if here and not (here / "config.json").is_file():
        return False
    try:
        return AutoConfig.from_pretrained(here or name, trust_remote_code=False).model_type != "prismatic"
    except (OSError, ValueError):
        return False  # `prismatic.load` says what is wrong
