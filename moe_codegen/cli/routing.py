"""Experts as colours: each token on the background of the first expert that took it."""

import re
from collections.abc import Sequence

from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from moe_codegen.generation import Token, shares_of_experts

# Backgrounds of the 256-colour palette that black text can be read on, neighbours as far apart as possible.
PALETTE = (117, 215, 114, 218, 229, 147, 80, 203, 150, 180, 123, 177, 222, 110, 211, 192)
LEGEND_ROWS = 16
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def style_of(expert: int) -> Style:
    """The style of the expert's tokens; past sixteen experts colours repeat."""
    return Style(color="color(16)", bgcolor=f"color({PALETTE[expert % len(PALETTE)]})")


def harmless(text: str) -> str:
    """`text` without control characters, which a model may write and a terminal would obey."""
    return CONTROL.sub("\ufffd", text)


def paint(console: Console, text: str, style: Style) -> str:
    """`text` in `style` for this console, every blank kept as it is; colour stops at line ends."""
    system: ColorSystem | None = console._color_system
    lines = harmless(text).split("\n")
    return "\n".join(style.render(line, color_system=system) if line else "" for line in lines)


def legend(tokens: Sequence[Token], layer: int, position: int, names: list[str] | None, granularity: int) -> Table:
    """Which colour is which expert, and what share of the tokens it took.

    Args:
        tokens: of a mixture.
        layer: the layer shown.
        position: its place among the sparse layers.
        names: of the experts, if they have any.
        granularity: how many experts share a name.
    """
    shares = shares_of_experts(token.experts[position][0] for token in tokens if token.experts)
    table = Table(
        box=None, padding=(0, 2, 0, 0), show_header=False, title=f"first expert in layer {layer}", title_justify="left"
    )
    for expert, share in list(shares.items())[:LEGEND_ROWS]:
        name = f" {names[expert // granularity]}" if names else ""
        bar = Text("█" * max(1, round(24 * share)), style=f"color({PALETTE[expert % len(PALETTE)]})")
        table.add_row(Text(f" expert {expert}{name} ", style=style_of(expert)), f"{share:.0%}", bar)
    if len(shares) > LEGEND_ROWS:
        table.add_row(f"and {len(shares) - LEGEND_ROWS} more", "", "")
    return table
