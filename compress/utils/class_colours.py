"""The colours in which boxes are drawn: bright enough for dark text on them, and apart from each other."""

_COLOURS = (
    "#ffd21f",
    "#3fd0ff",
    "#ff8ad1",
    "#63e06a",
    "#ffa24d",
    "#bba6ff",
    "#ff7d72",
    "#d3f03c",
    "#3be0c0",
    "#e9e9e9",
)


def class_colour(number: int) -> str:
    """Returns the colour of a class as #rrggbb; more classes than colours share them."""
    return _COLOURS[number % len(_COLOURS)]
