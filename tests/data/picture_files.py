"""Pictures as tests write and read them."""

import io
import tarfile

from PIL import Image


def picture(number, mode="RGB", format="PNG"):
    """Bytes of a picture of the grey level `number`."""
    file = io.BytesIO()
    Image.new("L", (40, 48), number).convert(mode).save(file, format)
    return file.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def grey(image):
    return image.getpixel((0, 0))[0]


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
