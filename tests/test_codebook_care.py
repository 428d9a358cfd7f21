"""`optimization.codebook`: a k-means codebook starts from data and is kept in use, as functions of the step."""

import pytest
import torch

from hf_wav2vec_family import VQWav2VecConfig, VQWav2VecForPreTraining
from hf_wav2vec_family.quantizers import code_usage
from training.pretrain import codebook_care
from training.recipe import Recipe, load_recipe

FIELDS = {
    "quantizer_type": "kmeans",
    "conv_dim": (8,) * 5,
    "conv_kernel": (10, 8, 4, 4, 4),
    "conv_stride": (5, 4, 2, 2, 2),
    "context_dim": (8,),
    "context_kernel": (2,),
    "num_codevectors_per_group": 6,
    "share_codevectors": False,
}


def recipe_with(codebook: dict | None) -> Recipe:
    recipe = Recipe()
    recipe.optimization.codebook = codebook
    return recipe


@pytest.fixture
def model() -> VQWav2VecForPreTraining:
    torch.manual_seed(0)
    return VQWav2VecForPreTraining(VQWav2VecConfig(**FIELDS))


@pytest.fixture
def batch() -> dict:
    return {"input_values": torch.randn(2, 8000, generator=torch.Generator().manual_seed(1)), "ids": ["a", "b"]}


def num_used(model, batch) -> int:
    return code_usage(model.quantize(batch["input_values"]), 6).num_used_codes


def test_the_first_batch_makes_the_codebook_and_every_nth_moves_what_is_dead(model, batch):
    care = codebook_care(recipe_with({"initialize": True, "restart_every_steps": 5}), model.config)
    care(model, batch, 0)
    assert num_used(model, batch) == 12
    with torch.no_grad():
        model.vq_wav2vec.quantizer.codevectors[:, 2] = 50.0
    for step in (1, 4, 6):
        care(model, batch, step)
        assert num_used(model, batch) == 10, step
    care(model, batch, 5)
    assert (model.vq_wav2vec.quantizer.codevectors < 50).all()


def test_without_the_option_nothing_touches_the_codebook(model, batch):
    assert codebook_care(recipe_with(None), model.config) is None
    before = model.vq_wav2vec.quantizer.codevectors.clone()
    codebook_care(recipe_with({"restart_every_steps": 5}), model.config)(model, batch, 0)
    assert torch.equal(model.vq_wav2vec.quantizer.codevectors, before)


def test_a_model_without_a_kmeans_codebook_is_refused():
    with pytest.raises(ValueError, match="k-means quantizer, got VQWav2VecConfig"):
        codebook_care(recipe_with({"initialize": True}), VQWav2VecConfig())


def test_an_unknown_option_is_named(tmp_path):
    (tmp_path / "recipe.yaml").write_text("optimization: {codebook: {restart: 5}}")
    with pytest.raises(ValueError, match="restart_every_steps, got restart"):
        load_recipe(tmp_path / "recipe.yaml", ["data.train=x", "run.output_dir=y"])
