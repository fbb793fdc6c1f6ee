"""What a backend has heard of: a scheme in other words it would do wrongly."""

from collections.abc import Mapping

from qb_cluster.contracts import Scheme

Vocabulary = Mapping[str, tuple[str, ...]]
"""The values that a backend knows, by field of a scheme."""


def unknown_words(scheme: Scheme, known: Vocabulary, who: str) -> str:
    """Tell which word of a scheme is not known; nothing where all are.

    Contracts grow without the backends that are installed beside them, so a backend lists what
    it knows, and does not conclude from what it has no objection to.

    Args:
        scheme: what is asked for.
        known: the words that are known.
        who: the backend by name; begins the message.
    """
    for field, words in known.items():
        if (asked := getattr(scheme, field)) not in words:
            return f"{who} does not know {field} '{asked}'; it knows {', '.join(words)}"
    return ""
