"""What a model writes with: phones or letters, and in which case these are."""

from transformers import PreTrainedTokenizerBase

CASES = ("upper", "lower")


def writes_phones(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the symbols are phones, which stand between blanks and make no words, rather than letters."""
    return not hasattr(tokenizer, "replace_word_delimiter_char")


def letter_case(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The case of all letters that a tokenizer has, "upper" or "lower"; None where it has both, none, or phones.

    A transcript in the other case is wrong in every letter, and is to be turned into this one first.
    """
    if writes_phones(tokenizer):
        return None
    symbols = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    letters = "".join(symbol for symbol in symbols if len(symbol) == 1)
    if letters.isupper():
        return "upper"
    return "lower" if letters.islower() else None


def in_case(text: str, case: str | None) -> str:
    """`text` in "upper" or "lower" case, or for None as it is."""
    check_case(case)
    return text if case is None else getattr(text, case)()


def check_case(case: str | None):
    """ValueError for anything but "upper", "lower" and None."""
    if case not in (*CASES, None):
        raise ValueError(f"text_case: expected 'upper', 'lower' or None, got {case!r}.")
