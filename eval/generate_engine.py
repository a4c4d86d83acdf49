"""Other models, and audits: batched answers through `generate`."""

from collections.abc import Sequence

import torch
from PIL import Image

from eval.engine import Answer, Question, SharedPrefixEngine, chosen, too_long
from eval.shared_images import SharedImages
from eval.sharing import sharing_problem
from eval.task import Generate
from prismatic.models.load import find_model
from prismatic.models.padding import padding_problem
from prismatic.text.conversations import encode_prompt
from prismatic.text.prompts import IMAGE_TOKEN
from prismatic.text.rendering import render_prompt
from prismatic.text.speech import speak, template_of


class PlainEngine:
    """Answers with any Hugging Face image-text-to-text model, through its processor's chat template.

    Args:
        model: The model, on its device, in evaluation mode.
        processor: Its processor.
        batch_size: Questions that are computed at once; 1 is the audit against which batches are checked.

    Raises:
        ValueError: The processor has no chat template.
    """

    def __init__(self, model, processor, batch_size: int):
        if not (getattr(processor, "chat_template", None) or processor.tokenizer.chat_template):
            raise ValueError(
                f"{type(processor).__name__} has no chat template, so that prompts cannot be written: set "
                "processor.chat_template (see prismatic.text.prompts.chat_template for the styles there are)"
            )
        self.model, self.processor, self.batch_size = model, processor, batch_size
        self.device = next(model.parameters()).device
        processor.tokenizer.padding_side = "left"
        self.shared = SharedImages(model, self._inputs, share=batch_size > 1)

    def prepare(self, image: Image.Image) -> Image.Image:
        """The picture; processors take pictures together with their prompts."""
        return image

    def text_of(self, prompt: str, answer: str | None = None) -> str:
        """A conversation as the model reads it, up to the answer, or with it."""
        if self.model.config.model_type == "prismatic":
            turns = [{"from": "human", "value": prompt}] + ([{"from": "gpt", "value": answer}] if answer else [])
            return IMAGE_TOKEN + render_prompt(turns, self.processor.tokenizer)
        parts = [{"type": "image"}, {"type": "text", "text": prompt}]
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
        opening = self.text_of("Which?", "OPTION").split("OPTION")[0]
        start = tokenizer(before, add_special_tokens=False)["input_ids"]
        ids = [tokenizer(opening + option, add_special_tokens=False)["input_ids"] for option in options]
        if any(option[: len(start)] != start for option in ids):
            raise ValueError(f"options {', '.join(options)} merge with the prompt's last token and cannot be scored")
        return [option[len(start) :] for option in ids]

    @torch.inference_mode()
    def answer(self, pictures: Sequence[Image.Image], questions: Sequence[Question]) -> list[Answer]:
        """Answers to `questions` about `pictures` (from `prepare`), in their order."""
        try:
            return self._answers(pictures, questions)
        finally:
            self.shared.forget()

    def _answers(self, pictures: Sequence[Image.Image], questions: Sequence[Question]) -> list[Answer]:
        answers: list[Answer | None] = [
            Answer(error=problem) if (problem := self._too_long(q)) else None for q in questions
        ]
        for kind in dict.fromkeys(question.kind for question in questions):
            asked = [n for n, question in enumerate(questions) if question.kind == kind and answers[n] is None]
            for start in range(0, len(asked), self.batch_size):
                part = asked[start : start + self.batch_size]
                some = [questions[number] for number in part]
                solve = self._generate if isinstance(kind, Generate) else self._choose
                for number, answer in zip(part, solve([pictures[q.image] for q in some], some, kind), strict=True):
                    answers[number] = answer
        return answers

    def _too_long(self, question: Question) -> str | None:
        """Why a question does not fit one of our models, whose processor does not say so."""
        if self.model.config.model_type != "prismatic":
            return None
        new = question.kind.max_new_tokens if isinstance(question.kind, Generate) else 1
        return too_long(self.model, self.processor, len(encode_prompt(question.prompt, self.processor.tokenizer)), new)

    def _read(self, pictures, questions: list[Question]) -> dict:
        if self.model.config.model_type == "prismatic":
            return self._placed(self.processor.ask([q.prompt for q in questions], list(pictures)))
        return self.shared.inputs(pictures, [self.text_of(q.prompt) for q in questions])

    def _inputs(self, pictures, texts: list[str]) -> dict:
        bos = self.processor.tokenizer.bos_token
        once = {"add_special_tokens": False} if bos and texts[0].startswith(bos) else {}  # templates may write BOS
        inputs = self.processor(images=[[p] for p in pictures], text=texts, padding=True, return_tensors="pt", **once)
        return self._placed(inputs)

    def _placed(self, inputs) -> dict:
        dtype = next(self.model.parameters()).dtype
        return {k: v.to(self.device, dtype) if v.is_floating_point() else v.to(self.device) for k, v in inputs.items()}

    def _generate(self, pictures, questions, kind) -> list[Answer]:
        inputs = self._read(pictures, questions)
        tokens = self.model.generate(**inputs, max_new_tokens=kind.max_new_tokens, do_sample=False)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        return [Answer(text.strip()) for text in self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def _choose(self, pictures, questions, kind) -> list[Answer]:
        inputs = self._read(pictures, questions)
        options = self.option_ids(kind.options)
        if all(len(option) == 1 for option in options):
            scores = self.shared.end(inputs).float()[:, torch.tensor(options, device=self.device).flatten()]
        else:
            scores = self.shared.log_probabilities(inputs, options)
        return [chosen(kind, row) for row in scores.softmax(-1).tolist()]


def load_engine(
    name: str,
    *,
    dtype: torch.dtype,
    device,
    batch_size: int,
    strict: bool = False,
    prompt_style: str = "auto",
    base: str | None = None,
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
        say: Takes a line on what cannot be shared.

    Raises:
        ValueError: There is no such model, it has no chat template, or its processor needs a package that is absent.
    """
    import prismatic

    if _is_other(name):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        try:
            processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
        except ImportError as error:
            raise ValueError(f"the processor of {name} needs a package: {' '.join(str(error).split())}") from error
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, trust_remote_code=False)
    else:
        model, processor = prismatic.load(name, dtype=dtype, base=base)
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
