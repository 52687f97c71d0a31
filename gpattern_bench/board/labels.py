"""Labels: names of methods on the board, which nobody can take for something else."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

__all__ = ["LONGEST", "check_label", "check_text", "look_alikes"]

LONGEST = 60
"""Most characters of a label."""

_PUNCTUATION = frozenset(" 0123456789,()+-_./&'")
_MARKS = re.compile(r"\((control|superseded|uses val|fitted on|not verified|no rule)")
_ASIAN = frozenset({"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"})  # Japanese writes all
# Letters of Cyrillic and Greek, and digits, by the Latin letter that they look like.
_SHAPES = str.maketrans(
    "абвгдеіјкмнорстухһԁԛѕьαβγεζηικνορτυχω015",  # noqa: RUF001
    "a6brdeijkmhopctyxhdqsbabyeznikvoptuxwols",
)


def check_text(text: str) -> str:
    """Refuse text with characters that are not seen or that turn its direction.

    Raises
    ------
    ValueError
        Names the first such character.
    """
    for character in text:
        kind = unicodedata.category(character)
        if (kind[0] == "C" and character not in "\n\t") or kind in ("Zl", "Zp"):
            raise ValueError(f"the character U+{ord(character):04X} is not printable; remove it")
    return text


def check_label(text: str) -> str:
    """Refuse a label that is long, in several scripts, or that holds markup or marks of the board.

    Allowed are letters of one script, digits, spaces and the characters ``,()+-_./&'``.

    Raises
    ------
    ValueError
        Says which rule it breaks.

    Examples
    --------
    >>> check_label("locFISH (t-SNE + k-means)")
    'locFISH (t-SNE + k-means)'
    """
    check_text(text)
    if len(text) > LONGEST:
        raise ValueError(f"expected at most {LONGEST} characters, got {len(text)}")
    if text != " ".join(text.split()):
        raise ValueError("expected single spaces between words, and none around them")
    if unicodedata.normalize("NFKC", text) != text:
        raise ValueError("expected NFC text without compatibility characters (ﬁ, ², full width)")
    scripts = set()
    marks = 0
    for character in text:
        kind = unicodedata.category(character)[0]
        marks = marks + 1 if kind == "M" else 0
        if marks > 2:
            raise ValueError("expected at most two marks on a letter")
        if kind in "LM":
            scripts.add(_script(character))
        elif character not in _PUNCTUATION:
            raise ValueError(
                f"expected letters, digits, spaces and ,()+-_./&' only, got {character!r}"
            )
    if len(scripts - {"COMBINING"}) > 1:
        raise ValueError(f"expected letters of one script, got {', '.join(sorted(scripts))}")
    if re.search(r"[^\W\d_]", text) is None:
        raise ValueError("expected at least one letter")
    if found := _MARKS.search(text.casefold()):
        raise ValueError(f"{found[0]!r} is a mark that the board sets; leave it out")
    if re.search(r"(?i)www\.", text):
        raise ValueError("expected a name, got an address")
    return text


def look_alikes(labels: Iterable[tuple[str, str]]) -> list[str]:
    """Name labels that readers would take for another submission's.

    Compared are skeletons: letters and digits alone, case folded, characters of Cyrillic and Greek
    and digits that look like Latin letters replaced by these. It finds common look-alikes, not all.

    Parameters
    ----------
    labels : iterable of (str, str)
        Method and label.

    Examples
    --------
    >>> look_alikes([("gpsnet", "GPSNet"), ("copy", "GP5-Net")])
    ["copy: the label 'GP5-Net' looks like 'GPSNet' of gpsnet; choose another"]
    """
    first: dict[str, tuple[str, str]] = {}
    problems = []
    for method, label in labels:
        known = first.setdefault(_skeleton(label), (method, label))
        if known[0] != method:
            problems.append(
                f"{method}: the label {label!r} looks like {known[1]!r} of {known[0]}; "
                "choose another"
            )
    return problems


def _script(letter: str) -> str:
    word = unicodedata.name(letter, "UNKNOWN").split()[0]
    return "CJK" if word in _ASIAN else word


def _skeleton(label: str) -> str:
    shapes = unicodedata.normalize("NFKD", label.casefold()).translate(_SHAPES)
    # In print, l, I and 1 are one stroke, and rn is m.
    shapes = re.sub(r"[\W_]", "", shapes).replace("i", "l").replace("rn", "m").replace("vv", "w")
    return unicodedata.normalize("NFKC", shapes)
