"""Transformers' RoBERTa, its head on the masked places alone: half of the frames, or a sixth, need no word.

Dropout and attention are those of fused.py, which a CPU is faster with; a GPU has Transformers' own.
"""

import copy

import transformers
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_outputs import MaskedLMOutput

from hf_wav2vec_family.fused import Dropout, sdpa

ATTENTION = "sdpa_with_dropout"
AttentionInterface.register(ATTENTION, sdpa)
AttentionMaskInterface.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


class RobertaForMaskedLM(transformers.RobertaForMaskedLM):
    """Transformers' own, by the same name, so that what is saved is loaded as that."""

    def __init__(self, config: transformers.RobertaConfig):
        super().__init__(copy.deepcopy(config))  # its attention is named there, for this model alone
        for parent in list(self.modules()):
            for name, child in parent.named_children():
                if type(child) is nn.Dropout:
                    setattr(parent, name, Dropout(child.p))
        if self.config._attn_implementation == "sdpa":
            self.set_attn_implementation(ATTENTION)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, places: Tensor | None = None, **given
    ) -> MaskedLMOutput:
        """Logits [M, vocabulary] of the `places` [M] among the B * L of `input_ids`, or without them of all."""
        if places is None:
            return super().forward(input_ids, attention_mask=attention_mask, **given)
        states = self.roberta(input_ids, attention_mask=attention_mask, **given).last_hidden_state
        return MaskedLMOutput(logits=self.lm_head(states.flatten(0, 1).index_select(0, places)))
