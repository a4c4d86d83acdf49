"""Pictures that a user names, and one to begin with."""

from pathlib import Path

from PIL import Image, ImageOps

from vision_backbones.safe_images import open_image, to_rgb


def open_picture(file: str | Path) -> Image.Image:
    """The picture in a file, in RGB, upright as people see it.

    Raises:
        ValueError: There is no such file, or it is no picture.
    """
    if not Path(file).is_file():
        raise ValueError(f"no picture {file}")
    try:
        with open_image(file) as image:
            return to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # of damaged files: nearly anything
        raise ValueError(f"{file} is no picture that can be read ({' '.join(str(error).split())[:150]})") from None


def drawn_scene(index: int = 0) -> Path:
    """The file of a drawn scene, in the user's cache."""
    from prismatic.miniature.llava_writer import WORLD_VERSION, cached
    from prismatic.miniature.scenes import scene
    from vision_backbones.files import replacing

    path = cached(f"scenes-v{WORLD_VERSION}") / f"{index}.png"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as tmp_path:
            Image.fromarray(scene(SEED, index, min_objects=2).image).save(tmp_path, "PNG")
    return path


SEED = 11  # of a world that nothing was trained on
