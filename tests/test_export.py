"""Exported graphs give the model's answers: padded, of odd lengths, alone, piece by piece, in 8 bits."""

import itertools
import json
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import MODELS, model_of
from publications import save_processor

from hf_wav2vec_family.export import export_model, graph_of
from hf_wav2vec_family.export.__main__ import main
from hf_wav2vec_family.export.comparison import answers_of_onnx, answers_of_program, compare
from hf_wav2vec_family.export.opening import tokenizer_of
from hf_wav2vec_family.export.writing import PROGRAM, TOLERANCE, quiet, write_onnx

pytest.importorskip("onnxscript", reason='onnxscript is not installed: pip install ".[export]"')
onnxruntime = pytest.importorskip("onnxruntime", reason='onnxruntime is not installed: pip install ".[export]"')

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "transcribe_onnx.py"
STREAMS = ("cpc", "cpc-modified", "wav2vec-causal", "wav2vec-recurrent", "vq-wav2vec-causal")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recogniser")
    model_of("wav2vec2-group").save_pretrained(folder)
    save_processor(folder, "wav2vec2")
    return folder


@pytest.fixture(scope="module")
def exported(folder, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("exported")
    assert main([str(folder), str(output), "--int8", "--torch"]) == 0
    return output


def waveform(samples: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, (1, samples)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["ForCTC", "Model"])
@pytest.mark.parametrize("name", MODELS)
def test_a_graph_gives_the_models_answers_to_padded_clips_of_odd_lengths(name, head, tmp_path):
    graph = graph_of(model_of(name, head))
    with quiet():
        program = graph.program()
        torch.export.save(program, tmp_path / PROGRAM)
        write_onnx(graph, program, tmp_path / "model.onnx")
    for answer in (answers_of_onnx(tmp_path / "model.onnx"), answers_of_program(tmp_path / PROGRAM)):
        found = compare(graph, answer)
        assert found.difference < 1e-5
        assert found.code_agreement in (None, 1.0)
        assert ("codes" in graph.outputs) == (found.code_agreement is not None)


# writing a graph takes seconds, whatever its size
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "cpc-modified" else pytest.mark.slow) for name in STREAMS]
)
def test_a_stream_in_pieces_equals_the_whole_clip(name, tmp_path):
    model = model_of(name)
    graph = graph_of(model, stream=True)
    with quiet():
        write_onnx(graph, graph.program(), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    whole, pieces, borders = waveform(9001), [], (0, 700, 1311, 5000, 9001)
    empty = {name: [abs(size) for size in shape] for name, shape in graph.state.items()}
    state = {name: np.zeros(shape, np.float32) for name, shape in empty.items()}
    for begin, end in itertools.pairwise(borders):
        marks = {"begin": np.array([begin == 0]), "end": np.zeros((1, int(end == borders[-1])), np.float32)}
        taken = {entry.name for entry in session.get_inputs()}
        inputs = {"input_values": whole[:, begin:end], **marks, **state}
        answers = session.run(None, {name: value for name, value in inputs.items() if name in taken})
        answers = dict(zip(graph.outputs, answers, strict=True))
        pieces.append(answers["logits"])
        state = {name: answers[f"next_{name}"] for name in state}
    with torch.no_grad():
        expected = model(torch.from_numpy(whole)).logits.numpy()
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["cpc-modified", "wav2vec2-group"])
def test_a_recogniser_may_come_without_letters(name, tmp_path):
    model_of(name).save_pretrained(tmp_path)
    assert tokenizer_of(tmp_path) is None


@pytest.mark.parametrize("name", ["wav2vec", "wav2vec2-group"])
def test_what_hears_the_whole_clip_is_not_exported_as_a_stream(name):
    with pytest.raises(ValueError, match=r"stream"):
        graph_of(model_of(name), stream=True)


def test_a_program_of_torch_takes_clips_of_any_number_and_length(folder, exported):
    program = torch.export.load(exported / PROGRAM).module()
    model = model_of("wav2vec2-group")
    for clips, samples in ((1, 3333), (3, 7001)):
        waveforms = torch.from_numpy(np.repeat(waveform(samples), clips, axis=0))
        with torch.no_grad():
            expected = model(waveforms).logits
            found = program(waveforms, torch.ones(clips, samples, dtype=torch.long))[0]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_numpy_and_onnxruntime_alone_transcribe_as_the_pipeline_does(folder, exported, tmp_path):
    from hf_wav2vec_family.decoding.pipeline import transcriber

    samples = (waveform(16_001)[0] * 32767).astype(np.int16)
    clip = tmp_path / "clip.wav"
    with wave.open(str(clip), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    # run as on a machine without this package and what it needs
    alone = "import runpy, sys; [sys.modules.__setitem__(n, None) for n in ('torch', 'transformers', 'onnx')];"
    code = f"{alone} sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    for model in ([], ["model.int8.onnx"]):
        command = [sys.executable, "-c", code, str(EXAMPLE), str(exported), str(clip), *model]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        assert len(lines) > 5
        if not model:
            # a folder of random weights may end in a delimiter
            assert lines[0] == transcriber(folder)(clip)["text"].strip()


def test_weights_of_8_bits_take_less_room_and_say_nearly_the_same(exported):
    sizes = {path.name: path.stat().st_size for path in exported.iterdir()}
    assert sizes["model.int8.onnx"] < sizes["model.onnx"]
    inputs = {"input_values": waveform(16_000), "attention_mask": np.ones((1, 16_000), np.int64)}
    whole, rounded = (
        onnxruntime.InferenceSession(exported / name).run(["logits"], inputs)[0]
        for name in ("model.onnx", "model.int8.onnx")
    )
    assert 0 < np.abs(whole - rounded).max() < 0.1 * np.abs(whole).max()


@pytest.mark.parametrize("name", ["wav2letter", pytest.param("wav2letter-mfcc", marks=pytest.mark.slow)])
def test_8_bits_hear_what_is_quiet_after_something_loud(name, tmp_path):
    model_of(name).save_pretrained(tmp_path / "model")
    export_model(tmp_path / "model", tmp_path, int8=True)
    fading = waveform(16_000) * 10 ** np.linspace(0, -3, 16_000, dtype=np.float32)
    inputs = {"input_values": fading, "attention_mask": np.ones((1, 16_000), np.int64)}
    whole, rounded = (
        onnxruntime.InferenceSession(tmp_path / file).run(None, inputs)[0]
        for file in ("model.onnx", "model.int8.onnx")
    )
    assert np.abs(whole - rounded).max() < 0.01 * np.abs(whole).max()


def test_no_graph_names_the_folders_of_whoever_exported_it(exported):
    assert str(Path(__file__).parents[1]).encode() not in (exported / "model.onnx").read_bytes()


def test_the_description_says_what_a_user_of_the_graph_needs(exported, folder):
    about = json.loads((exported / "export.json").read_text())
    assert about["symbols"][about["blank"]] == "<pad>"
    assert about["word_delimiter"] == "|"
    assert about["outputs"] == ["logits", "num_frames"]
    assert about["do_normalize"] is False
    assert about["hop_seconds"] == 0.01
    assert about["min_samples"] == 165
    assert about["max_samples"] is None


@pytest.mark.slow
def test_a_discrete_bert_says_how_much_it_reads_at_once_and_of_more_lacks_the_end(tmp_path):
    model = model_of("discrete-bert")
    model.save_pretrained(tmp_path / "model")
    exported = export_model(tmp_path / "model", tmp_path / "exported")
    session = onnxruntime.InferenceSession(tmp_path / "exported" / "model.onnx")
    most, frames = exported.description["max_samples"], model.config.max_frames
    for samples, num_frames in ((most, frames), (most + 1, frames + 1)):
        inputs = {"input_values": waveform(samples), "attention_mask": np.ones((1, samples), np.int64)}
        logits, counted = session.run(["logits", "num_frames"], inputs)
        assert counted.tolist() == [num_frames]
        assert logits.shape[1] == frames
        if num_frames == frames:
            with torch.no_grad():
                expected = model(torch.from_numpy(inputs["input_values"])).logits.numpy()
            assert np.abs(logits - expected).max() < TOLERANCE


def test_a_folder_of_no_model_of_this_package_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    assert main([str(tmp_path), str(tmp_path / "out")]) == 2
    assert "BertModel" in capsys.readouterr().err
