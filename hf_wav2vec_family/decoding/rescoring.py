"""Causal language models of Transformers, of characters, pieces or words, as judges of finished hypotheses."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .spelling import check_case, in_case


class CausalLanguageModel:
    """
    log10 p(text) under a causal language model, the sum over its tokens and the end of the text.

    The beam search of flashlight-text asks a language model for one word of one hypothesis at a time, which a
    Transformer is too slow for; the texts of an n-best list it reads in one pass.

    Args:
        tokenizer: needs an `eos_token`; what stands before the first token is `bos_token`, or `eos_token`.
        text_case: "upper" or "lower" for a model of such text; None leaves hypotheses as they are.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, text_case: str | None = None):
        check_case(text_case)
        if tokenizer.eos_token_id is None:
            raise ValueError("tokenizer: a language model needs an eos_token, to know where texts end; it has none.")
        self.model, self.tokenizer, self.text_case = model.eval(), tokenizer, text_case

    @classmethod
    def from_pretrained(cls, name: str | Path, *, text_case: str | None = None) -> "CausalLanguageModel":
        """A folder, or a repository of the Hub."""
        model = AutoModelForCausalLM.from_pretrained(name)
        return cls(model, AutoTokenizer.from_pretrained(name), text_case=text_case)

    @torch.no_grad()
    def score(self, texts: Sequence[str]) -> list[float]:
        """log10 p of each text.

        Raises:
            ValueError: a text has more tokens than the model has positions.
        """
        end = self.tokenizer.eos_token_id
        begin = end if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id
        texts = [in_case(text, self.text_case) for text in texts]
        rows = [[begin, *self.tokenizer.encode(text, add_special_tokens=False), end] for text in texts]
        longest = max(map(len, rows))
        positions = getattr(self.model.config, "max_position_embeddings", None) or longest
        if longest - 1 > positions:
            raise ValueError(f"texts: the longest has {longest - 1} tokens, the model has {positions} positions.")
        ids = torch.tensor([row + [end] * (longest - len(row)) for row in rows], device=self.model.device)
        valid = torch.arange(longest, device=ids.device) < torch.tensor([len(row) for row in rows]).to(ids)[:, None]
        logits = self.model(ids[:, :-1], attention_mask=valid[:, :-1].long()).logits
        # float64, since hundreds of tokens are summed and hypotheses differ in one of them
        chosen = logits.double().log_softmax(dim=-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        total = chosen.masked_fill(~valid[:, 1:], 0.0).sum(dim=-1)
        return (total / torch.log(torch.tensor(10.0, dtype=torch.double))).tolist()

    def save_pretrained(self, folder: str | Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
