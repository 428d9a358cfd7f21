"""Pictures show what they are said to show."""

import numpy as np
import pytest
import soundfile
import torch
from publications import save_ctc_run

from training import pictures


@pytest.fixture
def drawn(monkeypatch) -> list:
    """Figures, as they are when they are saved."""
    figures = []
    monkeypatch.setattr(pictures, "save_figure", lambda figure, output: figures.append(figure))
    return figures


def test_entries_that_no_frame_chooses_are_told_from_those_that_one_does(drawn, tmp_path):
    codes = torch.tensor([[0, 1], [0, 1], [3, 1]])
    pictures.draw_codebook(codes, 4, tmp_path / "codebook.png")
    first, second, pairs = drawn[0].axes[:3]
    cells = first.images[0].get_array().ravel()[:4]
    assert cells.mask.tolist() == [False, True, True, False]
    np.testing.assert_allclose(cells[[0, 3]], [2 / 3, 1 / 3])
    assert "1 of 4" in second.get_title()
    assert pairs.images[0].get_array().compressed().tolist() == [2, 1]


def test_columns_of_phones_are_shares_that_sum_to_one(drawn, tmp_path):
    codes = np.array([[0, 0], [0, 0], [0, 0], [1, 0], [1, 1]])
    pictures.draw_phones(codes, np.array(["A", "A", "B", "B", "SIL"]), tmp_path / "phones.png")
    mesh = drawn[0].axes[0].collections[0].get_array()
    np.testing.assert_allclose(mesh.sum(axis=0), 1)
    assert mesh.shape == (3, 3)
    assert "PNMI" in drawn[0].axes[0].get_title()


def test_attention_of_each_frame_sums_to_one_and_layers_that_are_none_are_refused(tmp_path):
    folder = save_ctc_run(tmp_path, "wav2vec2")
    soundfile.write(tmp_path / "clip.wav", np.random.default_rng(0).normal(0, 0.1, 8000), 16_000)
    maps, hop_seconds = pictures.attentions_of(str(folder), str(tmp_path / "clip.wav"), None)
    assert list(maps) == [0]
    assert hop_seconds == 0.01
    np.testing.assert_allclose(maps[0].sum(axis=-1), 1, atol=1e-5)
    pictures.draw_attention(maps, hop_seconds, tmp_path / "attention.png")
    assert (tmp_path / "attention.png").stat().st_size > 5000
    with pytest.raises(ValueError, match=r"0 and 0"):
        pictures.attentions_of(str(folder), str(tmp_path / "clip.wav"), [3])
