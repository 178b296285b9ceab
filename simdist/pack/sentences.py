"""English sentences for the synthetic corpus: words and patterns, from which a random generator picks.

The words were chosen so that all 39 sounds of the phone labels occur often, the rare ones (ZH, OY, UH, TH, NG) too.
"""

from __future__ import annotations

import numpy as np

_LISTS = {
    "adjective": (
        "quiet noisy golden azure royal foolish thin thick youthful loyal rough smooth bright hungry enormous "
        "shallow yellow careful proud joyful wooden unusual cheap strange gentle fierce dusty charming patient broken "
        "northern southern curious lazy muddy generous crooked visible pleasant heavy"
    ),
    "person": (
        "farmer teacher thief judge sailor boy girl mother father brother uncle cook doctor child neighbour soldier "
        "painter shepherd queen king lawyer baker guide stranger singer engineer gardener widow nurse author"
    ),
    "thing": (
        "treasure garage bridge kitchen orange bottle ship jacket feather mirror wooden_chair coin toy book foot_path "
        "boat house mouth watch church cloth ring engine measure television vision island thimble wheel hammer "
        "umbrella ladder voice cushion hook sugar_bowl oyster path garden river mountain valley castle village"
    ),
    "verb": (
        "found watched carried measured enjoyed pushed pulled chose described avoided followed judged threw thanked "
        "touched washed noticed borrowed painted buried welcomed ignored pointed_at looked_at laughed_at "
        "understood remembered counted fetched warned destroyed photographed visited"
    ),
    "adverb": (
        "usually casually slowly quickly rather_badly with_pleasure without_a_noise every_thursday in_the_morning "
        "at_noon once_more by_chance for_a_while in_good_faith each_evening by_the_fire on_the_other_side thoroughly "
        "under_the_moon near_the_school along_the_shore behind_the_house before_breakfast after_the_storm"
    ),
    "name": (
        "George Judith Arthur Joyce Theo Roy Ruth Hugh Beth Zoe Vincent Howard Charles Yvonne Thea Paul Faye Owen "
        "Leo Sarah"
    ),
    "number": "three four five seven eight nine eleven thirteen fourteen twenty thirty",
}
WORDS = {kind: words.split() for kind, words in _LISTS.items()}
"""Words of each kind; `_` stands for a space."""

PATTERNS = (
    "the {adjective} {person} {verb} the {thing} {adverb}",
    "{name} and the {person} {verb} {number} {adjective} things near the {thing}",
    "{adverb}, {name} {verb} a {adjective} {thing}, but the {person} {verb} nothing",
    "there was a {thing} which the {adjective} {person} {verb} {adverb}",
    "would you show {name} the {adjective} {thing} that the {person} {verb}",
    "{number} years ago the {person} {verb} this {adjective} {thing} with {name}",
    "the voice of the {person} was {adjective}, and {name} {verb} the {thing}",
    "both the {thing} and the {adjective} {thing} belong to {name}",
)


def sentence(rng: np.random.Generator) -> str:
    """One sentence, or two joined, of some three to twelve seconds when spoken; lower case but for names."""
    clauses = [_clause(rng) for _ in range(1 + int(rng.integers(0, 2)))]
    return ", and then ".join(clauses) + "."


def _clause(rng: np.random.Generator) -> str:
    parts = PATTERNS[rng.integers(len(PATTERNS))].split("{")
    filled = [parts[0]]
    for part in parts[1:]:
        kind, _, rest = part.partition("}")
        words = WORDS[kind]
        filled.append(words[rng.integers(len(words))].replace("_", " ") + rest)
    return "".join(filled)
