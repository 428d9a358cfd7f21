"""Transformers' RoBERTa, its head on the masked places alone: half of the frames, or a sixth, need no word."""

import transformers
from torch import Tensor
from transformers.modeling_outputs import MaskedLMOutput


class RobertaForMaskedLM(transformers.RobertaForMaskedLM):
    """Transformers' own, by the same name, so that what is saved is loaded as that."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, places: Tensor | None = None, **given
    ) -> MaskedLMOutput:
        """Logits [M, vocabulary] of the `places` [M] among the B * L of `input_ids`, or without them of all."""
        if places is None:
            return super().forward(input_ids, attention_mask=attention_mask, **given)
        states = self.roberta(input_ids, attention_mask=attention_mask, **given).last_hidden_state
        return MaskedLMOutput(logits=self.lm_head(states.flatten(0, 1).index_select(0, places)))
