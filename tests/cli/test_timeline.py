"""The timeline shows the whole plan, with or without colour."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from accelaes_export.cli.timeline import timeline
from accelaes_export.policies import Plan

plans = st.text("Dab.", min_size=0, max_size=130).map(lambda rest: Plan("D" + rest, (0.25, 0.5)))


@given(plans)
def test_the_symbols_without_numbers_and_gaps_are_the_plan(plan: Plan) -> None:
    lines = timeline(plan).plain.split("\n")[:-2]
    assert "".join(line[6:].replace(" ", "") for line in lines) == str(plan)
    assert [int(line[:6]) for line in lines] == list(range(0, len(plan), 50))


@given(plans)
def test_every_symbol_has_the_style_of_its_kind(plan: Plan) -> None:
    text = timeline(plan)
    styled = [(text.plain[span.start : span.end], str(span.style)) for span in text.spans]
    for symbol, style in styled:
        expected = {"D": "bold blue", "a": "green", "b": "green", ".": "dim"}.get(symbol)
        assert expected is None or style == expected


def test_the_legend_counts_the_kinds_that_occur_and_the_cost() -> None:
    text = timeline(Plan("DD.b", (0.25, 0.5))).plain
    assert "D dense ×2   b sparse n/N = 0.5 ×1   . skip ×1" in text
    assert "sparse n/N = 0.25" not in text
    assert "cost 2.5 of 4 dense steps (62% of the token-steps)" in text
