"""A page of HTML that needs no other file: what the reports share."""

from __future__ import annotations

import base64
from html import escape

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # nothing is fetched, whatever a name holds
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2em auto;padding:0 1em;color:#222;"
    "background:#fff}"
    "img{max-width:100%}table{border-collapse:collapse;margin:1em 0}"
    "td,th{border-bottom:1px solid #ccc;padding:.25em .9em .25em 0;text-align:left}"
    "td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}h2{margin-top:1.6em}"
)


def page(title: str, body: str, style: str = "") -> str:
    """A whole page: ``title`` is text, ``body`` HTML, ``style`` more CSS than every page has."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head>\n<body>{body}</body></html>\n"
    )


def image(content: bytes, text: str) -> str:
    """An ``img`` that holds its PNG or JPEG ``content``; ``text`` for who cannot see it."""
    data = base64.b64encode(content).decode("ascii")
    return f'<img alt="{escape(text)}" src="data:image/{image_format(content)};base64,{data}">'


def image_format(content: bytes) -> str:
    """'png' or 'jpeg', as the ``content`` begins. Raises ValueError for anything else."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if content.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    raise ValueError("a picture is a PNG or a JPEG")
