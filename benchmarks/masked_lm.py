"""A step of BERT on codes, its head on masked places, against Transformers' RoBERTa with the head on all of them.

python -m benchmarks.masked_lm --masked 0.5

Both sides have the same weights, tokens and masks; loss and gradients are compared without dropout.
"""

import json

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from training.masked_lm import RobertaForMaskedLM

from .comparing import compare, differences, options_of, prepare, report, with_gradients

NOT_A_TARGET = -100


def main():
    parser = options_of(__doc__)
    parser.add_argument("--masked", type=float, nargs="*", default=[0.5, 0.15], help="shares of masked places")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=23_672, help="words of vq-wav2vec's Gumbel codes and marks")
    parser.add_argument("--batch-size", type=int, default=2)
    options = parser.parse_args()
    prepare(options)
    config = transformers.RobertaConfig(
        vocab_size=options.vocabulary, num_hidden_layers=options.layers, max_position_embeddings=514
    )
    model, theirs = RobertaForMaskedLM(config), transformers.RobertaForMaskedLM(config)
    theirs.load_state_dict(model.state_dict(keep_vars=True), assign=True)
    shape = (options.batch_size, 512)
    input_ids = torch.randint(5, options.vocabulary, shape)
    attention_mask = torch.ones_like(input_ids)
    cases = []
    for share in options.masked:
        labels = torch.where(torch.rand(shape) < share, input_ids, NOT_A_TARGET)
        places = (labels.flatten() != NOT_A_TARGET).nonzero().squeeze(1)

        def peer(labels=labels) -> Tensor:
            return theirs(input_ids, attention_mask=attention_mask, labels=labels).loss

        def ours(labels=labels, places=places) -> Tensor:
            logits = model(input_ids, attention_mask=attention_mask, places=places).logits
            return F.cross_entropy(logits, labels.flatten()[places])

        for side in (model, theirs):
            side.eval()
        equality = differences(peer, ours, list(with_gradients(model.named_parameters()).values()), tolerance=1e-4)
        for side in (model, theirs):
            side.train()
        measured = compare(peer, ours, options.rounds)
        name = f"BERT of {options.layers} layers, {shape[0]} x 512 codes, {share:.0%} masked"
        cases.append({"case": name, **measured, **equality})
        print(json.dumps(cases[-1]), flush=True)
    report(options, cases)


if __name__ == "__main__":
    main()
