"""Pages of HTML that need no other file: no script, nothing loaded, all text escaped."""

import base64
from pathlib import Path


def render(template: Path, **content) -> str:
    """The page of a template that extends `page.html`, which has the frame, the style and `grid`, a table.

    In templates `| svg` makes a drawing (bytes of an SVG) the address of a picture.
    """
    import jinja2

    folders = [template.parent, Path(__file__).parent]
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=jinja2.FileSystemLoader(folders)
    )
    environment.filters["svg"] = lambda svg: f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
    return environment.get_template(template.name).render(**content)
