"""What patch features hold, for the eye: their main directions as colours over the image."""

from contextlib import suppress
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from prismatic.data.conversation_dataset import BadImageError
from prismatic.data.image_datasets import ImageSource
from vision_backbones.files import replacing
from vision_backbones.patch_views import colours

CELL, GAP, TITLE = 144, 8, 18  # pixels


@torch.no_grad()
def draw_patches(path: Path, source: ImageSource, backbones: dict[str, torch.nn.Module], count: int = 8) -> None:
    """Writes a picture: `count` images on top, below each backbone's patches in the colours of three principal axes.

    Patches of one colour have similar features, within a row of the picture; a ViT that knows what is where colours
    objects apart. Axes are those of all shown patches of a backbone.
    """
    images = []
    for row in range(len(source)):
        with suppress(BadImageError):  # what a run may skip, its picture skips too
            images.append(source[row][0])
        if len(images) == count:
            break
    side = CELL + GAP
    sheet = Image.new("RGB", (len(images) * side + GAP, (1 + len(backbones)) * (side + TITLE) + GAP), "white")
    draw = ImageDraw.Draw(sheet)

    def paste(row: int, title: str, pictures: list[Image.Image]) -> None:
        top = GAP + row * (side + TITLE)
        draw.text((GAP, top), title, "black")
        for column, picture in enumerate(pictures):
            resample = Image.Resampling.NEAREST if min(picture.size) < CELL else Image.Resampling.BICUBIC
            sheet.paste(picture.resize((CELL, CELL), resample), (GAP + column * side, top + TITLE))

    paste(0, "images", images)
    for row, (title, backbone) in enumerate(backbones.items(), start=1):
        pixels = torch.stack([backbone.transform(image) for image in images])
        device = next(backbone.parameters()).device
        features = backbone(pixels.to(device))[:, backbone.num_prefix_tokens :].float().cpu()
        grids = colours(features).view(len(images), *backbone.grid, 3).numpy()
        paste(row, title, [Image.fromarray(grid) for grid in grids])
    with replacing(path) as tmp_path:
        sheet.save(tmp_path, "PNG")
