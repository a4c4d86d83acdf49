"""What questions share in VLMs of any kind: a picture's features, and what was read before the options of a choice."""

import copy
import inspect
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from transformers.modeling_outputs import BaseModelOutputWithPooling

from prismatic.models.self_check import differ


class SharedImages:
    """Runs a VLM on questions whose pictures it encodes once each, and reads prompts once for all of their options.

    Either is used only as long as the first batch gave the logits that the model gives without it.

    Args:
        model: Any image-text-to-text model of transformers.
        read: Inputs of the model for pictures and as many texts.
        share: False runs the model as it is, as an audit does.
    """

    def __init__(self, model, read: Callable[[Sequence[Image.Image], Sequence[str]], dict], share: bool = True):
        self.model, self.read = model, read
        names = inspect.signature(model.forward).parameters
        self.last = {"logits_to_keep": 1} if "logits_to_keep" in names else {}
        self.cache = "cache" if "cache" in names else "past_key_values"
        self.encode = getattr(model.base_model, "get_image_features", None)
        self.encodes_once = share and "mm_encoder_outputs" in names and self.encode is not None
        self.reads_once = share
        self.tried: set[str] = set()
        self.known: dict[int, tuple[Image.Image, torch.Tensor | list[torch.Tensor]]] = {}

    def forget(self) -> None:
        """Drops the features of all pictures."""
        self.known.clear()

    def inputs(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> dict:
        """Inputs of the model with features in the place of pixels, where the model takes them."""
        plain = self.read(pictures, texts)
        if not self.encodes_once:
            return plain
        try:
            for picture, text in zip(pictures, texts, strict=True):
                if id(picture) not in self.known:
                    self.known[id(picture)] = picture, self._features(picture, text)
            shared = {name: value for name, value in plain.items() if not name.startswith("pixel")}
            merged = _merged([self.known[id(picture)][1] for picture in pictures])
            shared["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=merged)}
            if self._first("features"):
                self.encodes_once = not differ(self.end(shared), self.end(plain))
        except torch.OutOfMemoryError:  # which smaller batches mend
            raise
        except Exception:  # of a stranger's architecture: anything
            self.encodes_once = False
        return shared if self.encodes_once else plain

    def end(self, inputs: dict) -> torch.Tensor:
        """Logits `[rows, vocabulary]` after the last token."""
        return self.model(**_once(inputs), **self.last).logits[:, -1]

    def log_probabilities(self, inputs: dict, options: list[list[int]]) -> torch.Tensor:
        """Of options `[rows, options]` after the prompts."""
        if self.reads_once:
            try:
                found = self._continued(inputs, options)
                if not self._first("options"):
                    return found
                expected = torch.stack([self._read_again(inputs, option) for option in options], dim=1)
                self.reads_once = torch.allclose(found, expected, atol=1e-3 if expected.dtype is torch.float32 else 0.1)
                return expected
            except torch.OutOfMemoryError:
                raise
            except Exception:  # of a cache of another kind: anything
                self.reads_once = False
        return torch.stack([self._read_again(inputs, option) for option in options], dim=1)

    def _first(self, what: str) -> bool:
        new = what not in self.tried
        self.tried.add(what)
        return new

    def _features(self, picture: Image.Image, text: str):
        inputs = self.read([picture], [text])
        wanted = inspect.signature(self.encode).parameters
        found = self.encode(**{name: value for name, value in inputs.items() if name in wanted}, return_dict=True)
        others = found.keys() - {"pooler_output", "last_hidden_state", "hidden_states", "attentions"}
        if others:
            raise ValueError(f"features have more than one part: {', '.join(sorted(others))}")
        return found.pooler_output

    def _continued(self, inputs: dict, options: list[list[int]]) -> torch.Tensor:
        read = self.model(**_once(inputs), **self.last, use_cache=True)
        first, cache = read.logits[:, -1].float().log_softmax(-1), read[self.cache]
        scores = []
        for option in options:
            score = first[:, option[0]]
            if len(option) > 1:
                ids = torch.tensor(option, device=first.device).expand(len(first), -1)
                mask = torch.cat([inputs["attention_mask"], torch.ones_like(ids[:, :-1])], dim=1)
                more = {name: torch.zeros_like(ids[:, :-1]) for name in _TYPES & inputs.keys()}
                if (deltas := getattr(self.model.base_model, "rope_deltas", None)) is not None:
                    # Qwen's models take positions in three dimensions, and derive those of all tokens themselves.
                    ends = (mask.cumsum(1) - 1)[:, 1 - len(option) :]
                    more["position_ids"] = (ends + deltas).expand(3, *ends.shape)
                given = {self.cache: copy.deepcopy(cache), "attention_mask": mask} | more
                logits = self.model(input_ids=ids[:, :-1], **given, use_cache=True).logits.float().log_softmax(-1)
                score = score + logits.gather(2, ids[:, 1:, None]).sum((1, 2))
            scores.append(score)
        return torch.stack(scores, dim=1)

    def _read_again(self, inputs: dict, option: list[int]) -> torch.Tensor:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        added = torch.tensor(option, device=ids.device).expand(len(ids), -1)
        read = added[:, :-1]
        longer = _once(inputs) | {
            "input_ids": torch.cat([ids, read], dim=1),
            "attention_mask": torch.cat([mask, torch.ones_like(read)], dim=1),
        }
        for name in longer.keys() & _TYPES:
            longer[name] = torch.cat([inputs[name], torch.zeros_like(read)], dim=1)
        last = {name: len(option) for name in self.last}
        logits = self.model(**longer, **last).logits[:, -len(option) :].float().log_softmax(-1)
        return logits.gather(2, added[..., None]).sum((1, 2))


_TYPES = {"token_type_ids", "mm_token_type_ids"}  # 0 is text


def _once(inputs: dict) -> dict:
    """Inputs for one call: models write into the dict of features."""
    features = inputs.get("mm_encoder_outputs")
    return inputs if features is None else inputs | {"mm_encoder_outputs": dict(features)}


def _merged(parts: list):
    """Features of several pictures, as the model gives them of several."""
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(parts)
    return [tensor for part in parts for tensor in part]
