"""Text of a recording, every word a button that plays from where it is spoken."""

from collections.abc import Callable
from functools import lru_cache
from html import escape
from pathlib import Path
from urllib.parse import quote

from transformers import AutoProcessor

from ..audio_reading import Recording
from ..decoding.alignment import Alignment, best_path, timed
from ..decoding.decoder_folder import decoder_of
from ..decoding.emissions import emissions_of
from ..decoding.pipeline import own_class

# of the words that the player has reached the last is marked
FOLLOW = (
    "const words = [...this.parentNode.querySelectorAll('button')];"
    "const said = words.filter(w => +w.dataset.begin <= this.currentTime);"
    "words.forEach(w => w.classList.toggle('now', w === said[said.length - 1]));"
)
SEEK = (
    "const player = this.closest('.transcript').querySelector('audio');"
    "player.currentTime = +this.dataset.begin; player.play();"
)
STYLE = """
.transcript audio { width: 100%; margin-bottom: 0.8em; }
.transcript button { font: inherit; font-size: 1.15em; padding: 0.15em 0.35em; margin: 0.1em; border-radius: 0.4em;
    border: 1px solid var(--border-color-primary); background: var(--background-fill-secondary); cursor: pointer; }
.transcript button:hover, .transcript button.now { background: var(--primary-200, #fed7aa); color: #111; }
.transcript button small { display: block; font-size: 0.6em; opacity: 0.7; }
"""


@lru_cache(maxsize=2)
def recogniser(source: str):
    """Model in eval mode, processor and decoder, or None for one, of a folder or a name on the Hub.

    Raises:
        ValueError: it gives no text.
    """
    model_class = own_class(source)
    if model_class is None:
        raise ValueError(f"{source} holds no CTC or ASG model of this package.")
    model, processor = model_class.from_pretrained(source).eval(), AutoProcessor.from_pretrained(source)
    return model, processor, decoder_of(model, processor.tokenizer)


def transcribe(source: str, clip: str | Path, watch: Callable[[float], None] | None = None) -> Alignment:
    """What is said in a file and when; `watch` is told which share has been heard."""
    model, processor, decoder = recogniser(source)
    recording = Recording(clip, processor.feature_extractor.sampling_rate)
    emissions = emissions_of(model, processor.feature_extractor, recording, watch=watch)
    if decoder is None:
        path = best_path(emissions, None, blank=processor.tokenizer.pad_token_id)
    else:
        path = emissions.scores.new_tensor(decoder.decode(emissions.scores)[0].symbols).long()
    return timed(path, emissions, processor.tokenizer)


def as_html(alignment: Alignment, clip: str | Path) -> str:
    """A player of the file `clip`, as Gradio serves it, above its words, or its phones where there are no words."""
    spoken = alignment.words or alignment.symbols
    buttons = [
        f'<button data-begin="{one.start:.3f}" onclick="{escape(SEEK)}" title="to {one.end:.2f} s">'
        f"{escape(one.text)}<small>{one.start:.2f}</small></button>"
        for one in spoken
    ]
    player = f'<audio controls src="/gradio_api/file={quote(str(clip))}" ontimeupdate="{escape(FOLLOW)}"></audio>'
    return f'<div class="transcript">{player}<div>{"".join(buttons) or "<i>nothing was heard</i>"}</div></div>'
