"""The keys that need a class of each image, which ``teacher.labels: none`` does not give."""

from __future__ import annotations

from pipeline.config.fields import Section

_NEED_LABELS = {
    "synthesis": (
        *(
            "images_per_class",
            "min_confidence",
            "confirmed",
            "soft_labels",
            "views",
            "captions",
            "keep",
        ),
    ),
    "synthesis.objective": (*("classification", "classification_spread", "draws", "ambiguity"),),
    "adaptive": ("rounds",),
    "evaluation": ("data", "foreign", "verifier"),
}
_OFF = {"keep": 1.0, "draws": 1}  # these values switch a key off, and so do 0, false and null


def first_that_needs_labels(*sections: Section) -> str | None:
    """The first key that is set and needs labels, such as ``synthesis.confirmed``; or None.

    Args:
        sections: ``synthesis``, ``synthesis.objective``, ``adaptive`` and ``evaluation``.
    """
    for section, (place, names) in zip(sections, _NEED_LABELS.items(), strict=True):
        for name in names:
            value = getattr(section, name)
            if value and value != _OFF.get(name):
                return f"{place}.{name}"
    return None
