"""Draw docs/merge.svg: one module of both fixtures, of their merge, and how far that is from their sum.

python docs/picture.py

The numbers are those of the README's own command, `combine fixtures/a… fixtures/b…`.
"""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path

import numpy as np

import loramerge as lm

ROOT = Path(__file__).resolve().parent.parent
TARGET = lm.Target("model.layers.0.self_attn.q_proj")
SIDE, GAP, TOP = 168, 30, 32  # pixels
SIGNS = ("", "+", "→", "")  # before each panel
BLUE, WHITE, RED = (33, 102, 172), (255, 255, 255), (178, 24, 43)


def picture() -> str:
    """The whole SVG."""
    a, b = (lm.load(ROOT / "fixtures" / f"{name}.safetensors") for name in "ab")
    merge = lm.combine([a, b])
    ours, theirs, merged = (np.asarray(adapter[TARGET].dense()) for adapter in (a, b, merge.adapter))
    away = ours + theirs - merged
    share = (away**2).sum() / ((ours + theirs) ** 2).sum()
    panels = [
        ("a: reverses a word", ours),
        ("b: shifts its letters", theirs),
        ("their merge by level", merged),
        (f"away from a + b: {share:.0%}", away),
    ]
    largest = np.quantile(np.abs(ours + theirs), 0.995)
    body = "\n".join(_panel(at, words, values / largest) for at, (words, values) in enumerate(panels))
    width, height = len(panels) * (SIDE + GAP) + GAP, TOP + SIDE + 34
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13" fill="#222">\n'
        f'<rect width="{width}" height="{height}" fill="#fff"/>\n{body}\n'
        f'<text x="{GAP}" y="{height - 12}">ΔW of {TARGET}, {merged.shape[0]} × {merged.shape[1]}; '
        "red above zero, blue below; one scale for all four</text>\n</svg>\n"
    )


def _panel(at: int, words: str, values: np.ndarray) -> str:
    left = GAP + at * (SIDE + GAP)
    data = base64.b64encode(png(levels(values))).decode()
    return (
        f'<text x="{left}" y="{TOP - 9}">{words}</text>\n'
        f'<text x="{left - GAP / 2 - 5}" y="{TOP + SIDE / 2 + 6}" font-size="18">{SIGNS[at]}</text>\n'
        f'<image x="{left}" y="{TOP}" width="{SIDE}" height="{SIDE}" style="image-rendering:pixelated" '
        f'href="data:image/png;base64,{data}"/>\n'
        f'<rect x="{left}" y="{TOP}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#999"/>'
    )


def levels(values: np.ndarray) -> np.ndarray:
    """-1 … 1 as 0 … 62: few levels, so that another platform's rounding hardly shows."""
    return np.round((np.clip(values, -1, 1) + 1) * 31).astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    """An indexed PNG of the levels, in blue, white and red."""
    height, width = image.shape
    ramp = np.linspace(-1, 1, 63)[:, None]
    ends = np.where(ramp < 0, BLUE, RED)
    palette = np.round(np.array(WHITE) + (ends - np.array(WHITE)) * np.abs(ramp)).astype(np.uint8)
    rows = np.hstack([np.zeros((height, 1), np.uint8), image])  # 0: no filter in this row
    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = {
        b"IHDR": head,
        b"PLTE": palette.tobytes(),
        b"IDAT": zlib.compress(rows.tobytes(), 9),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )


if __name__ == "__main__":
    (ROOT / "docs" / "merge.svg").write_text(picture(), encoding="utf-8")
