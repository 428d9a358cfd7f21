"""The page: three tabs, each with the folder or the name on the Hub of its model."""

import gradio as gr
import numpy as np

from .codes import STRETCH_SECONDS, Coded, as_words, codes_of, draw_stretch
from .drawing import draw_window
from .live import Live
from .transcript import STYLE, as_html, transcribe

INTRODUCTION = """# Contrastive speech models
CPC, wav2vec, vq-wav2vec, Discrete BERT, wav2vec 2.0 and wav2letter, from the waveform. A model is a folder or a name
on the Hub."""


def shown(action, *arguments):
    """What `action` answers; what the user can mend is shown as such."""
    try:
        return action(*arguments)
    except (ValueError, OSError) as error:
        raise gr.Error(" ".join(str(error).split())) from error


def hear(source: str, clip: str | None, progress=gr.Progress()):  # noqa: B008
    if not source or not clip:
        raise gr.Error("A model and a recording are needed.")
    progress(0, desc="loading the model")
    alignment = shown(transcribe, source, clip, lambda share: progress(share, desc="listening"))
    times = [[one.text, round(one.start, 3), round(one.end, 3)] for one in alignment.words]
    return as_html(alignment, clip), alignment.text, times


def see_codes(source: str, clip: str | None, progress=gr.Progress()):  # noqa: B008
    if not source or not clip:
        raise gr.Error("A model and a recording are needed.")
    progress(0, desc="loading the model")
    coded = shown(codes_of, source, clip, lambda share: progress(share, desc="listening"))
    left = coded.num_seconds - STRETCH_SECONDS
    return draw_stretch(coded), as_words(coded), coded, gr.Slider(value=0, maximum=max(left, 1), visible=left > 0)


def move(begin: float, coded: Coded | None):
    return None if coded is None else draw_stretch(coded, begin)


def listen(source: str, chunk: tuple[int, np.ndarray] | None, live: Live | None):
    if not source or chunk is None:
        return None, "", live
    rate, samples = chunk
    if live is None or live.source != source or live.rate != rate:
        live = Live(source, rate)
    shown(live.hear, samples)
    return None if live.frames is None else draw_window(live.frames, live.codes), live.text(), live


def build(model: str = "", codes: str = "", live: str = "") -> gr.Blocks:
    """The page, with the models that each tab begins with."""
    with gr.Blocks(title="Contrastive speech models") as page:
        gr.Markdown(INTRODUCTION)
        with gr.Tab("Transcribe"):
            source = gr.Textbox(model, label="CTC or ASG model", placeholder="folder, or owner/name on the Hub")
            clip = gr.Audio(type="filepath", sources=["upload", "microphone"], label="speech")
            button = gr.Button("Transcribe", variant="primary")
            transcript = gr.HTML(label="words; click one to hear it", elem_id="transcript")
            text = gr.Textbox(label="text", lines=2, buttons=["copy"], elem_id="text")
            with gr.Accordion("times", open=False):
                times = gr.Dataframe(headers=["word", "begins", "ends"], label="seconds")
            button.click(hear, [source, clip], [transcript, text, times])
        with gr.Tab("Codes"):
            quantizer = gr.Textbox(codes, label="vq-wav2vec or Discrete BERT", placeholder="folder, or owner/name")
            spoken = gr.Audio(type="filepath", sources=["upload", "microphone"], label="speech")
            see = gr.Button("Show its codes", variant="primary")
            picture = gr.Plot(show_label=False, elem_id="codes")
            begin = gr.Slider(0, 1, step=1, label="seconds from the beginning", visible=False, elem_id="begin")
            written = gr.Textbox(label="codes as words", lines=3, buttons=["copy"])
            coded = gr.State()
            see.click(see_codes, [quantizer, spoken], [picture, written, coded, begin])
            begin.release(move, [begin, coded], picture)
        with gr.Tab("Live"):
            streamed = gr.Textbox(live, label="CPC, or wav2vec or vq-wav2vec with conv_norm=layer")
            microphone = gr.Audio(sources=["microphone"], streaming=True, type="numpy", label="speak")
            window = gr.Image(label="the last seconds: a column per frame, a row per unit", elem_id="window")
            heard = gr.Textbox(label="text, where the model has a CTC head", elem_id="heard")
            state = gr.State()
            microphone.stream(
                listen, [streamed, microphone, state], [window, heard, state], stream_every=0.5, show_progress="hidden"
            )
            microphone.start_recording(lambda: None, None, state)
    return page


def launch(page: gr.Blocks, **options):
    """Serves the page; `options` are those of Gradio."""
    return page.queue().launch(css=STYLE, **options)
