"""Discrete BERT (Baevski et al., 2019, arXiv:1910.05453, section 4; Baevski, Auli, Mohamed, 2019, arXiv:1911.03912).

Waveform -> codes of a frozen vq-wav2vec -> words -> RoBERTa -> features, which a head reads. RoBERTa is Transformers'
own, pre-trained as a masked language model on the codes; the first paper takes its features as they are, the second
fine-tunes it with CTC. Clips are given `<s>` and `</s>` as in pre-training, and frames lose them again.

Differences to the originals: padding changes nothing, a frame's codes are those of float32 whatever the rest of the
model computes in, and a clip of more frames than there are positions is read in pieces, each with its own marks, where
fairseq stops. fairseq has no code for the fine-tuned model; it follows the paper.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizer, RobertaModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple

from .code_words import CodeTable, code_numbers
from .configuration_discrete_bert import NUM_MARKS, DiscreteBertConfig
from .configuration_vq_wav2vec import VQWav2VecConfig
from .conv_model import ConvModelMixin
from .fairseq_dictionary import DICTIONARY_SPECIALS
from .heads import AudioFrameClassificationHead, CTCHead, SequenceClassificationHead
from .modeling_vq_wav2vec import VQWav2VecModel
from .precision import without_autocast

BEGIN, PADDING, END, UNKNOWN = range(len(DICTIONARY_SPECIALS))


@dataclass
class DiscreteBertModelOutput(ModelOutput):
    """
    Args:
        last_hidden_state: [B, T, H] features of RoBERTa, one per frame; those of padded frames mean nothing.
        codes: [B, T, G] int64 of vq-wav2vec.
        hidden_states: the embeddings and the output of each layer, [B, T, H] each, if asked for.
        attentions: None, for heads that ask every encoder for them.
    """

    last_hidden_state: Tensor | None = None
    codes: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class DiscreteBertPreTrainedModel(ConvModelMixin, PreTrainedModel):
    """Initialisation, lengths and masks for every Discrete BERT."""

    config: DiscreteBertConfig
    base_model_prefix = "discrete_bert"
    main_input_name = "input_values"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["ConvBlock", "RobertaEmbeddings", "RobertaLayer"]
    # `FrozenVQWav2Vec` while it is loaded
    _keep_in_fp32_modules_strict: ClassVar = {"vq_wav2vec"}
    travelling_classes: ClassVar = {
        "AutoConfig": "configuration_discrete_bert.DiscreteBertConfig",
        "AutoModel": "modeling_discrete_bert.DiscreteBertModel",
        "AutoModelForCTC": "modeling_discrete_bert.DiscreteBertForCTC",
        "AutoModelForAudioClassification": "modeling_discrete_bert.DiscreteBertForSequenceClassification",
        "AutoModelForAudioFrameClassification": "modeling_discrete_bert.DiscreteBertForAudioFrameClassification",
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, DiscreteBertModel):
            table = table_of_all_words(self.config)
            init.copy_(module.code_numbers, table.numbers)
            init.copy_(module.code_ids, table.ids)

    def get_input_embeddings(self) -> nn.Module:
        """Of codes, by which RoBERTa reads them."""
        return self.base_model.roberta.get_input_embeddings()


def table_of_all_words(config: DiscreteBertConfig) -> CodeTable:
    """The vocabulary of all V^G words, or an empty one where the embedding has fewer rows."""
    rows, num_words = config.roberta_config.vocab_size, config.num_possible_words
    if len(DICTIONARY_SPECIALS) + num_words > rows:
        num_words = 0
    numbers = torch.arange(num_words)
    return CodeTable.of(numbers, numbers + len(DICTIONARY_SPECIALS), rows)


class FrozenVQWav2Vec(VQWav2VecModel):
    """vq-wav2vec whose weights stay in the type that they have, whatever becomes of those around it.

    Rounded weights would choose other codes than those that RoBERTa learned.
    """

    def __init__(self, config: VQWav2VecConfig):
        super().__init__(config)
        self.context_network = None  # two thirds of its weights, and codes do not need them

    def _apply(self, fn, recurse: bool = True) -> "FrozenVQWav2Vec":
        def without_rounding(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            return changed if changed.dtype == tensor.dtype else tensor.to(changed.device)

        return super()._apply(without_rounding, recurse)


class DiscreteBertModel(DiscreteBertPreTrainedModel):
    """Waveform to codes to features."""

    def __init__(self, config: DiscreteBertConfig):
        super().__init__(config)
        self.vq_wav2vec = FrozenVQWav2Vec(config.vq_wav2vec_config)
        self.roberta = RobertaModel(config.roberta_config, add_pooling_layer=False)
        rows = config.roberta_config.vocab_size
        self.register_buffer("code_numbers", torch.full((rows,), -1))
        self.register_buffer("code_ids", torch.full((rows,), -1))
        self.post_init()
        self.requires_grad_(True)

    @classmethod
    def from_parts(
        cls, vq_wav2vec: PreTrainedModel, roberta: PreTrainedModel, tokenizer: PreTrainedTokenizer, **fields
    ) -> "DiscreteBertModel":
        """A model of copies of a trained vq-wav2vec, a RoBERTa trained on its codes, and their vocabulary.

        Args:
            vq_wav2vec: `VQWav2VecModel` or with its objective on top.
            roberta: `RobertaForMaskedLM` or another model on a `RobertaModel`.
            tokenizer: `SpeechCodesTokenizer` with one token per frame, whose ids are the rows of the embedding.
            fields: of the configuration, such as `freeze_roberta`.

        Raises:
            ValueError: the vocabulary does not fit the codes or the embedding, or a part is of another kind.
        """
        if vq_wav2vec.config.model_type != VQWav2VecConfig.model_type:
            raise ValueError(f"vq_wav2vec must be a VQWav2VecModel, got {type(vq_wav2vec).__name__}.")
        codes, words = vq_wav2vec.config.to_dict(), roberta.config.to_dict()
        codes.pop("auto_map", None)  # the code of this folder, not of the one it came from
        config = DiscreteBertConfig(vq_wav2vec_config=codes, roberta_config=words, **fields)
        model = cls(config)
        model.set_vocabulary(tokenizer)
        for part, trained in ((model.vq_wav2vec, vq_wav2vec.base_model), (model.roberta, roberta.base_model)):
            weights = trained.state_dict()
            part.load_state_dict({name: weights[name] for name in part.state_dict()})
        return model.eval()

    @torch.no_grad()
    def set_vocabulary(self, tokenizer: PreTrainedTokenizer):
        """Takes the ids of codes from a `SpeechCodesTokenizer`; raises ValueError for one that does not fit."""
        quantizer = self.config.vq_wav2vec_config
        if tokenizer.num_codevector_groups != quantizer.num_codevector_groups:
            raise ValueError(
                f"the vocabulary has words of {tokenizer.num_codevector_groups} codes, but vq-wav2vec has"
                f" {quantizer.num_codevector_groups} groups."
            )
        rows = self.config.roberta_config.vocab_size
        table = tokenizer.code_table(quantizer.num_codevectors_per_group, rows)
        self.code_numbers.copy_(table.numbers)
        self.code_ids.copy_(table.ids)

    def requires_grad_(self, requires_grad: bool = True) -> "DiscreteBertModel":
        """As PyTorch's, except that vq-wav2vec never learns, nor RoBERTa with `freeze_roberta`."""
        super().requires_grad_(requires_grad)
        for part in self._frozen_parts():
            part.requires_grad_(False)
        return self

    def train(self, mode: bool = True) -> "DiscreteBertModel":
        """As PyTorch's, except that what is frozen has no dropout and no noise, and stays frozen."""
        super().train(mode)
        for part in self._frozen_parts():
            # from_pretrained makes everything trainable, and then calls eval
            part.eval().requires_grad_(False)
        return self

    def _frozen_parts(self) -> list[nn.Module]:
        return [self.vq_wav2vec, self.roberta] if self.config.freeze_roberta else [self.vq_wav2vec]

    def freeze_feature_encoder(self):
        """Stops training the convolutions, which do not learn in any case."""
        self.vq_wav2vec.requires_grad_(False)

    def quantize(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Codes [B, T, G] int64 of the waveform [B, S]; those of padded frames mean nothing."""
        # in the type of its weights: rounded latents would choose other codes, as rounded weights would
        with without_autocast(input_values.device):
            return self.vq_wav2vec.quantize(input_values.to(self.vq_wav2vec.dtype), attention_mask)

    def token_ids(self, codes: Tensor) -> Tensor:
        """Codes [B, T, G] -> ids [B, T] of RoBERTa's vocabulary, those of words it does not have `<unk>`."""
        if self.code_numbers.device.type == "cpu" and not torch.compiler.is_compiling() and self.code_numbers[-1] < 0:
            raise ValueError(
                "the model has no vocabulary: set_vocabulary takes it from a tokenizer, or roberta_config.vocab_size"
                f" must have room for all {self.config.num_possible_words} words, got"
                f" {self.config.roberta_config.vocab_size}."
            )
        numbers = code_numbers(codes, self.config.vq_wav2vec_config.num_codevectors_per_group)
        return CodeTable(self.code_numbers, self.code_ids).look_up(numbers, UNKNOWN)

    def read(self, ids: Tensor, lengths: Tensor, output_hidden_states: bool = False) -> tuple[Tensor, ...]:
        """Ids [B, T], of which `lengths` [B] count -> embeddings and layers, or the last layer alone, [B, T, H] each.

        Pieces of `config.max_frames` are read by themselves, where T is above that.
        """
        batch_size, total = ids.shape
        size = min(total, self.config.max_frames)
        num_pieces = -(-total // size)
        pieces = F.pad(ids, (0, num_pieces * size - total)).view(-1, size)
        begins = torch.arange(num_pieces, device=ids.device) * size
        left = (lengths[:, None] - begins).clamp(0, size).view(-1, 1)  # [B * pieces, 1] frames of each piece
        place = torch.arange(size + NUM_MARKS, device=ids.device)
        marked = F.pad(pieces, (1, 1), value=BEGIN)
        marked = torch.where(place <= left, marked, torch.where(place == left + 1, END, PADDING))
        outputs = self.roberta(
            input_ids=marked,
            attention_mask=(place < left + NUM_MARKS).long(),
            output_hidden_states=output_hidden_states,
        )
        states = outputs.hidden_states if output_hidden_states else (outputs.last_hidden_state,)
        return tuple(state[:, 1:-1].reshape(batch_size, -1, state.shape[-1])[:, :total] for state in states)

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> DiscreteBertModelOutput:
        """
        Args:
            input_values: [B, S] waveform at 16 kHz, as it was recorded.
            attention_mask: [B, S], 1 for samples, 0 for padding on the right.

        Raises:
            ValueError: a clip is too short for a frame, or attentions are asked for, which are those of pieces with
                marks around them and not of the frames of a clip.
        """
        self.refuse_attentions(output_attentions)
        codes = self.quantize(input_values, attention_mask)
        lengths = self.vq_wav2vec.frame_lengths(attention_mask)
        if lengths is None:
            lengths = torch.full_like(codes[:, 0, 0], codes.shape[1])
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_roberta):
            states = self.read(self.token_ids(codes), lengths, bool(wanted))
        return DiscreteBertModelOutput(
            last_hidden_state=states[-1], codes=codes, hidden_states=states if wanted else None
        )


class DiscreteBertForCTC(CTCHead, DiscreteBertPreTrainedModel):
    """Discrete BERT with a linear layer over the symbols of a language."""

    def __init__(self, config: DiscreteBertConfig):
        super().__init__(config)
        self.discrete_bert = DiscreteBertModel(config)
        if config.use_weighted_layer_sum:
            self.add_layer_weights(config.num_hidden_layers + 1)
        self.add_ctc_head(config.hidden_size, config.vocab_size, config.final_dropout)
        self.post_init()


class DiscreteBertForSequenceClassification(SequenceClassificationHead, DiscreteBertPreTrainedModel):
    """Discrete BERT with one class per clip."""

    def __init__(self, config: DiscreteBertConfig):
        super().__init__(config)
        self.discrete_bert = DiscreteBertModel(config)
        if config.use_weighted_layer_sum:
            self.add_layer_weights(config.num_hidden_layers + 1)
        self.add_classifier(config.hidden_size, config.classifier_proj_size, config.num_labels)
        self.post_init()


class DiscreteBertForAudioFrameClassification(AudioFrameClassificationHead, DiscreteBertPreTrainedModel):
    """Discrete BERT with one class per frame."""

    def __init__(self, config: DiscreteBertConfig):
        super().__init__(config)
        self.discrete_bert = DiscreteBertModel(config)
        if config.use_weighted_layer_sum:
            self.add_layer_weights(config.num_hidden_layers + 1)
        self.add_classifier(config.hidden_size, config.num_labels)
        self.post_init()


DiscreteBertConfig.register_for_auto_class()
DiscreteBertModel.register_for_auto_class("AutoModel")
DiscreteBertForCTC.register_for_auto_class("AutoModelForCTC")
DiscreteBertForSequenceClassification.register_for_auto_class("AutoModelForAudioClassification")
DiscreteBertForAudioFrameClassification.register_for_auto_class("AutoModelForAudioFrameClassification")
