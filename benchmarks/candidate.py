"""Our wav2vec 2.0 behind the call of Transformers' own, so that any script that times one can time the other.

`factory(task, config)` returns a module for the task "pretraining" or "ctc" that takes Transformers' weights and
arguments and returns its loss: the sum over the masked frames, without the feature penalty that Transformers lacks.
"""

from types import SimpleNamespace

from torch import Tensor, nn

from hf_wav2vec_family import Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2ForPreTraining

# what Transformers' pre-training does not have
AS_TRANSFORMERS = {"feature_penalty_weight": 0.0, "feature_gradient_scale": 1.0}


class Candidate(nn.Module):
    """The model, its loss a sum where Transformers' is one."""

    def __init__(self, model: nn.Module, *, sums: bool):
        super().__init__()
        self.model, self.sums = model, sums

    def load_hf_state_dict(self, weights: dict[str, Tensor]):
        self.model.load_state_dict(weights)

    def freeze_feature_encoder(self):
        self.model.freeze_feature_encoder()

    def prepare_pretraining_inputs(self, *_) -> dict:
        """Nothing: masks and distractors are drawn in the forward pass, on its device."""
        return {}

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None, **given: Tensor) -> SimpleNamespace:
        output = self.model(input_values, attention_mask=attention_mask, **given)
        if not self.sums:
            return SimpleNamespace(loss=output.loss, logits=output.logits)
        loss = output.loss
        if not self.training:
            # Transformers counts the codes chosen where we take the mean of the soft choice
            config = self.model.config
            num_codes = config.num_codevector_groups * config.num_codevectors_per_group
            loss = output.contrastive_loss + config.diversity_loss_weight * (1 - output.code_perplexity / num_codes)
        return SimpleNamespace(loss=loss * output.num_targets)


def factory(task: str, config: dict) -> Candidate:
    kind = {"pretraining": Wav2Vec2ForPreTraining, "ctc": Wav2Vec2ForCTC}[task]
    return Candidate(kind(Wav2Vec2Config(**{**config, **AS_TRANSFORMERS})), sums=task == "pretraining")
