"""Looks at Markdown pages as readers do: links that lead nowhere, and sentences that are too long."""

from __future__ import annotations

import re
from pathlib import Path

_FENCE = re.compile(r"^```.*?^```[^\n]*$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"")


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower()).replace(" ", "-")
        for title in headings
    }


def broken_links(page: Path) -> list[str]:
    """Links to files of the repository, and to headings in them, that lead nowhere. Other sites are not asked."""
    broken = []
    for match in _LINK.finditer(_FENCE.sub("", page.read_text())):
        link = match[1] or match[2]
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        other = (page.parent / name).resolve() if name else page
        if not other.exists() or (anchor and anchor not in anchors(other)):
            broken.append(link)
    return broken


def mean_words_per_sentence(markdown: str) -> float:
    """Words per sentence of a page's paragraphs and bullets, without code, tables, headings and generated parts."""
    text = re.sub(r"^<!-- ([\w-]+) -->$.*?^<!-- /\1 -->$", "", _FENCE.sub("", markdown), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<[^>]*>", "", text)
    text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", text)
    blocks: list[str] = []
    for paragraph in re.split(r"\n\s*\n|\n(?=- )", text):
        lines = [line for line in paragraph.splitlines() if line.strip() and not line.startswith(("|", "#"))]
        blocks.append(" ".join(lines).removeprefix("- "))
    sentences = [part for block in blocks for part in re.split(r"(?<=[.!?])\s+", block) if re.search(r"\w", part)]
    return sum(len(re.findall(r"[\w`'-]+", sentence)) for sentence in sentences) / len(sentences)
