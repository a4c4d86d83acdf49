import numpy as np
import torch
from PIL import Image

from prismatic.data.image_datasets import open_images
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
