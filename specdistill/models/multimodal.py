"""Text models inside multimodal checkpoints, which are loaded without the towers beside them."""

from __future__ import annotations

KEY_MAPPING = {
    r"^language_model\.model\.": "model.",
    r"^model\.language_model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}
"""Names of a text model's weights inside a multimodal checkpoint -> their names in a text model of its own."""
_TEXT = ("language_model.", "model.language_model.", "lm_head.", "model.layers.", "model.embed_tokens.", "model.norm.")


def is_beside_text(name: str) -> bool:
    """Whether a weight belongs to a tower or projector beside the text model."""
    return not name.startswith(_TEXT)
