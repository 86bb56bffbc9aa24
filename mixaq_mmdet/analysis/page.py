"""The report: one HTML page without a network, its data inside, a little JavaScript for hovering and the slider."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .inspection import Inspection

ASSETS = Path(__file__).parent / 'page_assets'


def png_uri(image: np.ndarray) -> str:
    """An image (H, W, 3) RGB in [0, 1] as a data URI."""
    import cv2

    done, encoded = cv2.imencode('.png', (image[..., ::-1] * 255).round().astype(np.uint8))
    if not done:
        raise ValueError(f'an image of shape {image.shape} cannot be written as PNG')
    return 'data:image/png;base64,' + base64.b64encode(encoded.tobytes()).decode()


def maps_data(inspections: Sequence[tuple[str, Inspection]]) -> list[dict[str, Any]]:
    """What the page needs to split windows at any ratio: each stage's grid and order, for each image."""
    return [
        {
            'name': name,
            'uri': png_uri(found.image),
            'size': list(found.image.shape[:2]),
            'stages': [
                {
                    'stage': record.stage + 1,
                    'tokens': list(record.size),
                    'window': record.window_size,
                    'order': record.regular.order[0].tolist(),
                }
                for record in found.records
            ],
        }
        for name, found in inspections
    ]


def html_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; numbers to the right, three significant places."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f'<td class="n">{value:.3g}</td>'
        text = html.escape(str(value))
        if ' ' not in text:
            text = text.replace('.', '.<wbr>')  # module paths may break on narrow screens and on paper
        return f'<td{" class=n" if isinstance(value, int) else ""}>{text}</td>'

    head = ''.join(f'<th>{html.escape(name)}</th>' for name in header)
    body = ''.join('<tr>' + ''.join(map(cell, row)) + '</tr>' for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def section(title: str, content: str) -> str:
    """A titled part of the page."""
    return f'<section><h2>{html.escape(title)}</h2>{content}</section>'


def absent(what: str, command: str) -> str:
    """What stands where a part is missing: how to make it."""
    return f'<p class="absent">{html.escape(what)} Make it with <code>{html.escape(command)}</code></p>'


def page(title: str, sections: Sequence[str], data: dict[str, Any]) -> str:
    """The whole document; ``data`` is read by the script."""
    style = (ASSETS / 'page.css').read_text()
    script = (ASSETS / 'page.js').read_text()
    # a closing tag inside a string would end the element
    payload = json.dumps(data).replace('</', '<\\/')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{html.escape(title)}</title><style>{style}</style></head><body><main>'
        f'<h1>{html.escape(title)}</h1>{"".join(sections)}</main>'
        f'<script type="application/json" id="data">{payload}</script><script>{script}</script></body></html>\n'
    )
