"""Draws boxes with their labels over an image, as inline SVG."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from compress.report.svg import Box, overlap

SIDE = 320  # units of the drawing on a side, about as many pixels on a wide screen
_TAG = 13.0  # height of a label
_NARROW, _WIDE, _LETTER = 4.2, 8.6, 6.5  # widths of letters
_COVERED = 0.2  # share of a label that another one may cover


@dataclass(frozen=True)
class DrawnBox:
    """A box in units of the drawing; without `text` it has no label."""

    box: Box
    colour: str
    text: str
    note: str  # the tooltip
    kind: str  # "found", "false", "missed", "ignored"; decides the line


def draw(picture: Markup, boxes: Sequence[DrawnBox], title: str) -> Markup:
    """Draws the boxes over `picture`, an SVG element; the first ones get their labels first.

    A label that would cover others is left out: the line's colour and the tooltip still name the class.
    """
    outlines = [_outline(box) for box in boxes]
    taken: list[Box] = []
    tags = []
    for box in boxes:
        place = _place(box.box, _width(box.text) + 6, taken) if box.text else None
        if place is not None:
            taken.append(place)
            tags.append(_tag(place, box.text, box.colour))
    return Markup('<svg class="boxes" viewBox="0 0 {0} {0}" role="img" aria-label="{1}">{2}{3}</svg>').format(
        SIDE, title, picture, Markup("").join(outlines + tags)
    )


def _outline(drawn: DrawnBox) -> Markup:
    left, top, right, bottom = drawn.box
    place = Markup('x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"').format(left, top, right - left, bottom - top)
    return Markup(
        '<g class="{0}"><title>{1}</title><rect class="halo" {2}/><rect class="line" stroke="{3}" {2}/></g>'
    ).format(drawn.kind, drawn.note, place, drawn.colour)


def _place(box: Box, width: float, taken: Sequence[Box]) -> Box | None:
    """Returns where a label of that width covers the others least, at an edge of its box; None where it covers much."""
    left, top, right, bottom = box
    corners = [(left - 1, top - _TAG), (left - 1, bottom), (right + 1 - width, top - _TAG), (right + 1 - width, bottom)]
    corners += [(left, top), (left, bottom - _TAG), (right - width, top), (right - width, bottom - _TAG)]
    places = [_inside(x, y, width) for x, y in corners if 0 <= y <= SIDE - _TAG]
    covered = [sum(overlap(place, other) for other in taken) for place in places]
    best = min(range(len(places)), key=covered.__getitem__)
    return places[best] if covered[best] <= _COVERED * width * _TAG else None


def _width(text: str) -> float:
    """Returns about how wide a text is, in a wide sans-serif font."""
    return sum(_NARROW if letter in "fijlrtI .,-" else _WIDE if letter in "mwMW" else _LETTER for letter in text)


def _inside(x: float, y: float, width: float) -> Box:
    x = min(max(x, 0.0), max(SIDE - width, 0.0))
    return x, y, x + width, y + _TAG


def _tag(place: Box, text: str, colour: str) -> Markup:
    left, top, right, bottom = place
    return Markup(
        '<rect class="tag" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="{}"/>'
        '<text x="{:.1f}" y="{:.1f}">{}</text>'
    ).format(left, top, right - left, bottom - top, colour, left + 3, bottom - 3.2, text)
