"""Language models around a language model of flashlight-text, which its beam search asks unit by unit: words with a
lexicon, symbols without. They need flashlight-text, and answer in Python what the search otherwise asks in C++: with a
lexicon, which asks for words only, that is little; without one it makes the search some forty times slower.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from flashlight.lib.text.decoder import LM, LMState
from torch import Tensor


class WrappedLM(LM):
    """`lm_weight` times the score of `lm`, plus what a subclass adds by what it remembers of the units before.

    flashlight-text keeps hypotheses apart by the identity of their states, which are children of each other."""

    def __init__(self, lm: LM, lm_weight: float):
        LM.__init__(self)
        self.lm, self.lm_weight = lm, lm_weight
        self.states: dict[LMState, tuple[LMState, Any]] = {}

    def at_start(self) -> Any:
        """What is remembered before the first unit."""
        raise NotImplementedError

    def added(self, remembered: Any, unit: int) -> tuple[Any, float]:
        """What is remembered behind `unit`, and what that adds."""
        raise NotImplementedError

    def added_at_end(self, remembered: Any) -> float:
        return 0.0

    def start(self, start_with_nothing: bool) -> LMState:
        state = LMState()
        self.states = {state: (self.lm.start(start_with_nothing), self.at_start())}
        return state

    def score(self, state: LMState, unit: int) -> tuple[LMState, float]:
        inner, remembered = self.states[state]
        inner, score = self.lm.score(inner, unit)
        remembered, added = self.added(remembered, unit)
        after = state.child(unit)
        self.states.setdefault(after, (inner, remembered))
        return after, self.lm_weight * score + added

    def finish(self, state: LMState) -> tuple[LMState, float]:
        inner, remembered = self.states[state]
        inner, score = self.lm.finish(inner)
        after = state.child(-1)
        self.states.setdefault(after, (inner, remembered))
        return after, self.lm_weight * score + self.added_at_end(remembered)


class TransitionLM(WrappedLM):
    """ASG's transitions for the search without a lexicon, which in flashlight-text 0.0.7 scores without them.

    The search asks only where the symbol changes. So frames bring what staying scores along (`emissions_with_stays`),
    and a change from m to n adds transitions[n, m] - transitions[n, n].

    Args:
        transitions: [V, V], `transitions[to, from]`.
        silence: the symbol that the search begins in, -1 for none.
    """

    def __init__(self, lm: LM, lm_weight: float, transitions: Tensor, silence: int):
        super().__init__(lm, lm_weight)
        self.changes = (transitions - transitions.diagonal()[:, None]).T.tolist()
        self.silence = silence

    def at_start(self) -> int:
        return self.silence

    def added(self, remembered: int, unit: int) -> tuple[int, float]:
        return unit, self.changes[remembered][unit] if remembered >= 0 else 0.0


def emissions_with_stays(emissions: Tensor, transitions: Tensor, silence: int) -> Tensor:
    """[T, V] emissions that make a path's score right with [`TransitionLM`]; the first frame has no transition."""
    stays = transitions.diagonal()
    emissions = emissions + stays
    emissions[0] -= transitions[:, silence] if silence >= 0 else stays
    return emissions


@dataclass
class Place:
    """Where in a hot phrase the text is.

    Args:
        units: those of the phrase so far.
        boost: what they have added.
        kept: what of it stays when the phrase breaks off, for shorter phrases that are whole.
        is_end: whether a phrase ends here.
        following: the units that may come next.
    """

    units: tuple[int, ...] = ()
    boost: float = 0.0
    kept: float = 0.0
    is_end: bool = False
    following: dict[int, "Place"] = field(default_factory=dict)


class HotWordLM(WrappedLM):
    """The boosts of hot phrases.

    Units of a phrase add their boosts one by one, so that the beam keeps its beginning; if it doesn't go on to its
    end, they are taken back, and the text is where its last words may begin another phrase.

    Args:
        phrases: units and the boost of each.
        boundary: the unit between words, where phrases begin and end; None for units that are words.
    """

    def __init__(
        self, lm: LM, lm_weight: float, phrases: Sequence[Sequence[tuple[int, float]]], *, boundary: int | None
    ):
        super().__init__(lm, lm_weight)
        self.boundary, self.root = boundary, Place()
        for phrase in phrases:
            place = self.root
            for unit, boost in phrase:
                place = place.following.setdefault(unit, Place((*place.units, unit), place.boost + boost))
            place.is_end = True
        self._set_kept(self.root)

    def _set_kept(self, place: Place) -> None:
        for unit, after in place.following.items():
            after.kept = self._kept(place, unit)
            self._set_kept(after)

    def _kept(self, place: Place, unit: int | None) -> float:
        """What of the boosts at `place` stays if the phrase breaks off before `unit`, None for the end."""
        is_whole = place.is_end and (self.boundary is None or unit in (None, self.boundary))
        return place.boost if is_whole else place.kept

    def at_start(self) -> Place:
        return self.root

    def added(self, remembered: Place | None, unit: int) -> tuple[Place | None, float]:
        """None is a place within a word that is none of the hot ones."""
        if remembered is None:
            return (self.root if unit == self.boundary else None), 0.0
        if unit in remembered.following:
            after = remembered.following[unit]
            return after, after.boost - remembered.boost
        taken_back = remembered.boost - self._kept(remembered, unit)
        after = self._restarted((*remembered.units, unit))
        return after, (after.boost if after else 0.0) - taken_back

    def _restarted(self, units: tuple[int, ...]) -> Place | None:
        """The place of the longest end of `units` that begins a phrase, without all of them."""
        for start in range(1, len(units) + 1):
            if self.boundary is None or units[start - 1] == self.boundary:
                place: Place | None = self.root
                for unit in units[start:]:
                    place = place and place.following.get(unit)
                if place is not None:
                    return place
        return None if self.boundary is not None else self.root

    def added_at_end(self, remembered: Place | None) -> float:
        return 0.0 if remembered is None else self._kept(remembered, None) - remembered.boost
