"""Beam search over the frames of a CTC or ASG model with language models, by flashlight-text.

A hypothesis scores the sum of the emissions along its best path (log-probabilities for CTC; emissions and transitions
for ASG) and of

    lm_weight log10 p(text) + word_score words + silence_score delimiter frames + rescoring_weight log10 q(text)

with p an n-gram model and q a causal language model of Transformers. Logarithms of base 10 are those of ARPA files,
so that weights mean what they do in wav2letter and fairseq. With `log_add` the sum over all paths that are in the
beam takes the place of the best one: CTC's own probability of a text.

With a lexicon only its words come, and the n-gram model is one of words. Without one any symbols do, and the n-gram
model is one of symbols. Either way a text begins in silence: a delimiter at the first frame adds nothing to it.

Shapes: T frames, V symbols.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .lexicon import Lexicon, delimiter_of, spell_words
from .rescoring import CausalLanguageModel

INSTALL = (
    "a beam search needs flashlight-text: pip install 'hf-wav2vec-family[decode]' (it has wheels for Python up to"
    " 3.12); without a decoder transcription is greedy and needs nothing"
)
# A beam keeps every frame's hypotheses, gigabytes for an hour; behind so many frames what is agreed upon is written
# down, all but the last ones, and forgotten.
FRAMES_PER_STEP, FRAMES_OPEN = 3000, 500
# For what no path may take: low enough to lose, and -inf would make NaN of differences.
NEVER = -1e9


def import_flashlight() -> ModuleType:
    """
    Raises:
        ImportError: flashlight-text is not installed; the message says what to do.
    """
    try:
        from flashlight.lib.text import decoder
    except ImportError as error:
        raise ImportError(INSTALL) from error
    return decoder


@dataclass(frozen=True)
class BeamSettings:
    """
    Args:
        beam_size: hypotheses kept at each frame.
        beam_threshold: hypotheses further below the best one are dropped.
        lm_weight: of log10 p of the n-gram model.
        word_score: what each word of the lexicon adds.
        silence_score: what each frame of the word delimiter adds.
        log_add: sum the paths of one text instead of taking the best.
        rescoring_weight: of log10 p of the causal language model.
        num_rescored: how many hypotheses the causal language model judges, at least.
        hot_word_boost: what each hot word adds.
    """

    beam_size: int = 50
    beam_threshold: float = 50.0
    lm_weight: float = 0.0
    word_score: float = 0.0
    silence_score: float = 0.0
    log_add: bool = False
    rescoring_weight: float = 0.0
    num_rescored: int = 20
    hot_word_boost: float = 0.0

    def __post_init__(self):
        for name in ("beam_size", "num_rescored"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.beam_threshold <= 0:
            raise ValueError(f"beam_threshold must be above 0, got {self.beam_threshold}.")


@dataclass
class Hypothesis:
    """One text of an n-best list.

    Args:
        text: what was said.
        score: the whole sum; of a text longer than the frames of a step only that of its last part.
        lm_score: log10 p of the n-gram model, hot words included as they enter the sum.
        symbols: the symbol of each frame, [T] ids.
    """

    text: str
    score: float
    lm_score: float
    symbols: list[int]


class BeamSearchDecoder:
    """
    Args:
        tokenizer: of the model; its padding is the blank of CTC.
        transitions: [V, V] of ASG, `transitions[to, from]`; None is CTC.
        language_model: ARPA file or binary of KenLM, of order 2 at least; None is none.
        lexicon: words and their spellings; None searches without.
        causal_lm: judges the best `num_rescored` hypotheses.
        hot_words: words or phrases that are to come more easily; with a lexicon those that it lacks are added.

    Raises:
        ImportError: flashlight-text is not installed.
        ValueError: what doesn't fit together; a setting without effect.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        settings: BeamSettings | None = None,
        *,
        transitions: Tensor | None = None,
        language_model: str | Path | None = None,
        lexicon: Lexicon | None = None,
        causal_lm: CausalLanguageModel | None = None,
        hot_words: Sequence[str] = (),
    ):
        self.flashlight = import_flashlight()
        self.tokenizer, self.settings = tokenizer, settings or BeamSettings()
        self.transitions = None if transitions is None else transitions.detach().float().cpu()
        self.language_model = None if language_model is None else Path(language_model)
        self.causal_lm, self.hot_words = causal_lm, [phrase.split() for phrase in hot_words]
        self.num_symbols = len(tokenizer) if transitions is None else len(transitions)
        self.symbols = tokenizer.convert_ids_to_tokens(list(range(self.num_symbols)))
        self.lexicon = lexicon
        if lexicon is not None:
            missing = {word for word in chain.from_iterable(self.hot_words) if word not in lexicon}
            self.lexicon = lexicon | (spell_words(sorted(missing), tokenizer) if missing else {})
        delimiter = getattr(tokenizer, "word_delimiter_token", None)
        if lexicon is not None:
            delimiter = delimiter_of(tokenizer)
        self.silence = self.symbols.index(delimiter) if delimiter in self.symbols else -1
        self._check()

    def _check(self) -> None:
        needed = {
            "lm_weight": (self.language_model, "language_model"),
            "word_score": (self.lexicon, "lexicon"),
            "rescoring_weight": (self.causal_lm, "causal_lm"),
            "hot_word_boost": (self.hot_words, "hot_words"),
        }
        for name, (part, needs) in needed.items():
            if getattr(self.settings, name) and not part:
                raise ValueError(f"{name}={getattr(self.settings, name)} has no effect without {needs}.")
        if self.language_model is not None and not self.language_model.is_file():
            raise ValueError(f"language_model: there is no file {self.language_model}.")

    def with_settings(self, settings: BeamSettings) -> "BeamSearchDecoder":
        """The same search with other weights; language model and lexicon are shared and not read again."""
        other = object.__new__(BeamSearchDecoder)
        other.__dict__ = {name: value for name, value in self.__dict__.items() if name not in ("search", "fused_lm")}
        # Reading them here lets all searches that come of this one share them.
        other.__dict__ |= {"units": self.units, "lm": self.lm}
        if self.lexicon is not None:
            other.__dict__["trie"] = self.trie
        other.settings = settings
        other._check()
        return other

    def with_hot_words(self, hot_words: Sequence[str], boost: float) -> "BeamSearchDecoder":
        """The same search with other hot words, each of which adds `boost`."""
        return BeamSearchDecoder(
            self.tokenizer,
            replace(self.settings, hot_word_boost=boost),
            transitions=self.transitions,
            language_model=self.language_model,
            lexicon=self.lexicon,
            causal_lm=self.causal_lm,
            hot_words=hot_words,
        )

    @cached_property
    def units(self) -> list[str]:
        """What the n-gram model is one of."""
        return [*self.lexicon, "<unk>"] if self.lexicon is not None else self.symbols

    @cached_property
    def lm(self) -> Any:
        """flashlight's n-gram model."""
        if self.language_model is None:
            return self.flashlight.ZeroLM()
        from flashlight.lib.text.decoder.kenlm import KenLM
        from flashlight.lib.text.dictionary import Dictionary

        try:
            return KenLM(str(self.language_model), Dictionary(self.units))
        except RuntimeError as error:
            raise ValueError(f"language_model: KenLM can't read {self.language_model}: {error}") from error

    @cached_property
    def trie(self) -> Any:
        """The spellings of the lexicon, each branch with the best that the n-gram model has for it."""
        trie = self.flashlight.Trie(self.num_symbols, self.silence)
        ids = {symbol: i for i, symbol in enumerate(self.symbols)}
        start = self.lm.start(False)
        for number, (word, spellings) in enumerate(self.lexicon.items()):
            _, score = self.lm.score(start, number)
            for spelling in spellings:
                if unknown := set(spelling) - set(ids):
                    raise ValueError(f"lexicon: {word} has {sorted(unknown)}, which are no symbols of the model.")
                if self.transitions is not None and any(a == b for a, b in pairwise(spelling)):
                    raise ValueError(f"lexicon: {word} repeats a symbol, which ASG can't hear; it needs replabels.")
                trie.insert([ids[symbol] for symbol in spelling], number, score)
        trie.smear(self.flashlight.SmearingMode.MAX)
        return trie

    @cached_property
    def fused_lm(self) -> tuple[Any, float]:
        """What the search asks, and its weight; flashlight does not keep models of Python alive by itself."""
        lm, lm_weight = self.lm, self.settings.lm_weight
        if self._adds_transitions:
            from .wrapped_lms import TransitionLM

            lm, lm_weight = TransitionLM(lm, lm_weight, self.transitions, self.silence), 1.0
        if self.hot_words and self.settings.hot_word_boost:
            from .wrapped_lms import HotWordLM

            boundary = None if self.lexicon is not None else self.silence
            lm, lm_weight = HotWordLM(lm, lm_weight, self._phrases(), boundary=boundary), 1.0
        return lm, lm_weight

    @cached_property
    def search(self) -> Any:
        """flashlight's decoder with these weights."""
        flashlight, settings = self.flashlight, self.settings
        lm, lm_weight = self.fused_lm
        options = {
            "beam_size": settings.beam_size,
            "beam_size_token": self.num_symbols,
            "beam_threshold": settings.beam_threshold,
            "lm_weight": lm_weight,
            "sil_score": settings.silence_score,
            "log_add": settings.log_add,
            "criterion_type": getattr(flashlight.CriterionType, "CTC" if self.transitions is None else "ASG"),
        }
        transitions = [] if self.transitions is None else self.transitions.flatten().tolist()
        blank = self.tokenizer.pad_token_id if self.transitions is None else -1
        if self.lexicon is None:
            options = flashlight.LexiconFreeDecoderOptions(**options)
            return flashlight.LexiconFreeDecoder(options, lm, self.silence, blank, transitions)
        options |= {"word_score": settings.word_score, "unk_score": float("-inf")}
        options = flashlight.LexiconDecoderOptions(**options)
        unknown = len(self.units) - 1
        return flashlight.LexiconDecoder(options, self.trie, lm, self.silence, blank, unknown, transitions, False)

    @property
    def _adds_transitions(self) -> bool:
        return self.transitions is not None and self.lexicon is None

    def _phrases(self) -> list[list[tuple[int, float]]]:
        """Each hot phrase as units and what they add."""
        boost, numbers = self.settings.hot_word_boost, {unit: i for i, unit in enumerate(self.units)}
        if self.lexicon is not None:
            return [[(numbers[word], boost) for word in phrase] for phrase in self.hot_words]
        phrases = []
        for phrase in self.hot_words:
            symbols = [s for s in self.tokenizer.tokenize(" ".join(phrase)) if s in numbers]
            while symbols and numbers[symbols[0]] == self.silence:
                del symbols[0]
            while symbols and numbers[symbols[-1]] == self.silence:
                del symbols[-1]
            phrases.append([(numbers[symbol], boost * len(phrase) / len(symbols)) for symbol in symbols])
        return phrases

    def decode(self, emissions: Tensor, num_best: int = 1) -> list[Hypothesis]:
        """The best `num_best` texts, best first; fewer where the beam has fewer.

        Args:
            emissions: [T, V], of CTC logits or log-probabilities, of ASG its emissions.

        Raises:
            ValueError: another shape; more than one text of more frames than a step.
        """
        if emissions.dim() != 2 or not len(emissions) or emissions.shape[1] != self.num_symbols:
            raise ValueError(f"emissions: expected [T, {self.num_symbols}], got {list(emissions.shape)}.")
        if num_best > 1 and len(emissions) > FRAMES_PER_STEP:
            raise ValueError(f"num_best must be 1 above {FRAMES_PER_STEP} frames, got {num_best}.")
        rescore = self.causal_lm is not None and self.settings.rescoring_weight
        wanted = max(num_best, self.settings.num_rescored) if rescore else num_best
        hypotheses = self._hypotheses(self._scores(emissions), len(emissions), wanted)
        return (self._rescored(hypotheses) if rescore else hypotheses)[:num_best]

    def _scores(self, emissions: Tensor) -> Tensor:
        """float32 scores as flashlight reads them; for words of CTC with a frame of silence that ends the last one.

        The targets of ASG have the delimiter at their ends, so that its models hear one there."""
        emissions = emissions.detach().float().cpu()
        if self._adds_transitions:
            from .wrapped_lms import emissions_with_stays

            return emissions_with_stays(emissions, self.transitions, self.silence)
        if self.transitions is not None:
            return emissions.contiguous()
        emissions = emissions.log_softmax(dim=-1).clamp(min=NEVER)
        if self.lexicon is not None:
            silence = emissions.new_full((1, self.num_symbols), NEVER)
            silence[0, self.silence] = -self.settings.silence_score
            emissions = torch.cat([emissions, silence])
        return emissions.contiguous()

    def _hypotheses(self, scores: Tensor, num_frames: int, wanted: int) -> list[Hypothesis]:
        """The `wanted` best texts of the final beam; `scores` may have a frame more than `num_frames`."""
        symbols: list[int] = []
        words: list[int] = []
        self.search.decode_begin()
        for first in range(0, len(scores), FRAMES_PER_STEP):
            step = scores[first : first + FRAMES_PER_STEP]
            self.search.decode_step(step.data_ptr(), len(step), self.num_symbols)
            if first + len(step) < len(scores):
                agreed = self.search.get_best_hypothesis(FRAMES_OPEN)
                self.search.prune(FRAMES_OPEN)
                symbols, words = symbols + agreed.tokens[1:], words + agreed.words[1:]
        self.search.decode_end()
        texts: dict[str, Hypothesis] = {}
        for result in sorted(self.search.get_all_final_hypothesis(), key=lambda result: -result.score):
            # The first is the state before these frames, the last the end of the text.
            path = (symbols + result.tokens[1:-1])[:num_frames]
            text = self._text(path, words + result.words[1:])
            texts.setdefault(text, Hypothesis(text, result.score, result.lmScore, path))
            if len(texts) == wanted:
                break
        return list(texts.values())

    def _text(self, path: list[int], words: list[int]) -> str:
        if self.lexicon is not None:
            return " ".join(self.units[word] for word in words if word >= 0)
        return self.tokenizer.decode(path, skip_special_tokens=False)

    def _rescored(self, hypotheses: list[Hypothesis]) -> list[Hypothesis]:
        judged = self.causal_lm.score([hypothesis.text for hypothesis in hypotheses])
        for hypothesis, log10_p in zip(hypotheses, judged, strict=True):
            hypothesis.score += self.settings.rescoring_weight * log10_p
        return sorted(hypotheses, key=lambda hypothesis: -hypothesis.score)
