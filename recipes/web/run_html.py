"""HTML of the page of runs, in which nothing that a file says can act."""

import base64
import html

STYLE = """<style>
.runs-chart { margin: 0; }
.runs-chart svg { width: 100%; height: auto; display: block; max-width: 1150px; color: var(--body-text-color); }
.runs-chart ul { list-style: none !important; padding: 0 !important; margin: .5rem 0; }
.runs-chart li { list-style: none !important; margin: .2rem 0 !important; }
.runs-chart li, .runs-pictures figcaption { overflow-wrap: anywhere; margin: .2rem 0; }
.runs-quiet { color: var(--body-text-color-subdued); }
.runs-wide { display: none; }
@media (min-width: 800px) { .runs-wide { display: block; } .runs-narrow { display: none; } }
.runs-pictures { display: grid; gap: 1.2rem; }
.runs-pictures figure { margin: 0; }
.runs-pictures div { overflow-x: auto; }
.runs-pictures div:focus-visible { outline: 2px solid var(--color-accent); }
.runs-pictures img { display: block; max-width: none; width: max(100%, 720px); height: auto; background: #fff; }
@media (min-width: 800px) { .runs-pictures img { width: auto; max-width: 100%; } }
.runs-report { width: 100%; height: 80vh; border: 1px solid var(--border-color-primary); background: #fff; }
</style>"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
PNG = b"\x89PNG\r\n\x1a\n"


def escaped(text: str) -> str:
    """Text for HTML, which gradio's templates leave alone, too."""
    text = html.escape(text)
    for letter in "{}$`\\":
        text = text.replace(letter, f"&#{ord(letter)};")
    return text


def picture(content: bytes, caption: str) -> str:
    """A figure of a PNG, or a line that says that it is none."""
    if not content.startswith(PNG):
        return f"<p>{escaped(caption)}: the picture is damaged.</p>"
    caption = escaped(caption)
    data = base64.b64encode(content).decode()
    return (
        f'<figure><div tabindex="0" role="region" aria-label="{caption}">'
        f'<img alt="{caption}" src="data:image/png;base64,{data}"></div><figcaption>{caption}</figcaption></figure>'
    )


def report(content: str, title: str) -> str:
    """A page of its own origin, in which no script runs, and which loads nothing from elsewhere, whatever it says."""
    guarded = f'<!doctype html><meta http-equiv="Content-Security-Policy" content="{POLICY}">{content}'
    return f'<iframe class="runs-report" sandbox="" title="{escaped(title)}" srcdoc="{escaped(guarded)}"></iframe>'
