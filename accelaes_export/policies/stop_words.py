"""English words that carry no picture by themselves: articles, prepositions, conjunctions, pronouns, auxiliaries.

The list is for prompts. Colours, numbers, sizes, places ("left", "top") and looks stay content words, and so do words
that are a thing in a prompt more often than an auxiliary: a can, a mine, a film still, a parking lot.
"""

from __future__ import annotations

_LIST = """
a an the this that these those some any each every either neither both all such same other another no not nor and or
but yet so as if than then while where when which who whom whose what why how because though although about above
across after against along alongside amid amidst among amongst around at atop before behind below beneath beside
besides between beyond by despite down during except for from in inside into like near next of off on onto opposite
out outside over past per since through throughout till to toward towards under underneath until unto up upon versus
via vs with within without i me my myself you your yours yourself he him his himself she her hers herself it its
itself we us our ours ourselves they them their theirs themselves one's someone something anyone anything everyone
everything there here am is are was were be been being do does did doing done have has had having could would shall
should must isn't aren't wasn't weren't don't doesn't didn't can't couldn't won't wouldn't shouldn't hasn't haven't
hadn't i'm you're we're they're i've you've we've they've i'll you'll we'll they'll it'll i'd you'd he'd she'd very
really quite rather too also just only even more most much many few several et cetera etc eg ie
"""
_STOP_WORDS = frozenset(_LIST.split())


def is_stop_word(word: str) -> bool:
    """Whether `word`, in any case and with either apostrophe, is a stop word; a final 's is left out of account."""
    plain = word.casefold().replace("\u2019", "'")
    return plain in _STOP_WORDS or plain.removesuffix("'s") in _STOP_WORDS
