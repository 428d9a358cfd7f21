"""Codes as words: codes, strings and ids say the same, and vocabularies are those of fairseq."""

import pytest
import torch
import transformers

from hf_wav2vec_family import SpeechCodesTokenizer

GROUPS, ENTRIES = 2, 12
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]


def some_codes(*shape: int, groups: int = GROUPS) -> torch.Tensor:
    return torch.randint(ENTRIES, (*shape, groups), generator=torch.Generator().manual_seed(0))


VOCABULARIES = {
    "learned": lambda: SpeechCodesTokenizer.from_codes([some_codes(3, 50)], ENTRIES),
    "all": lambda: SpeechCodesTokenizer.with_all_codes(GROUPS, ENTRIES),
    "per group": lambda: SpeechCodesTokenizer.per_group(GROUPS, ENTRIES),
    "one group": lambda: SpeechCodesTokenizer.with_all_codes(1, ENTRIES),
    "three groups": lambda: SpeechCodesTokenizer.with_all_codes(3, ENTRIES),
}


@pytest.fixture(params=VOCABULARIES)
def tokenizer(request) -> SpeechCodesTokenizer:
    return VOCABULARIES[request.param]()


@pytest.fixture
def codes(tokenizer) -> torch.Tensor:
    return some_codes(3, 50, groups=tokenizer.num_codevector_groups)


def test_codes_strings_and_ids_say_the_same(tokenizer, codes):
    for row in codes:
        text = tokenizer.convert_codes_to_string(row)
        assert text.split()[7] == "-".join(str(code) for code in row[7].tolist())
        assert torch.equal(tokenizer.convert_string_to_codes(text), row)
        ids = tokenizer.convert_codes_to_ids(row)
        assert ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert torch.equal(tokenizer.convert_ids_to_codes(ids), row)
        assert tokenizer.decode(ids) == text
    together = tokenizer.convert_codes_to_ids(codes)
    assert together.shape == (3, 50 * tokenizer.tokens_per_frame)
    assert torch.equal(together, torch.stack([tokenizer.convert_codes_to_ids(row) for row in codes]))
    assert torch.equal(tokenizer.convert_ids_to_codes(together), codes)


def test_ids_are_specials_words_fillers_and_the_mask(tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    assert tokens[:4] == SPECIALS
    assert tokens[-1] == tokenizer.mask_token == "<mask>"
    assert len(tokenizer) == tokenizer.vocab_size == len(set(tokens))
    assert (len(tokenizer) - 1) % 8 == 0
    num_fillers = sum(token.startswith("madeupword") for token in tokens)
    assert all(token.startswith("madeupword") for token in tokens[len(tokens) - 1 - num_fillers : -1])
    assert num_fillers < 8


def test_a_learned_vocabulary_has_the_most_frequent_word_first_and_ties_by_letters():
    words = ["2-10", "10-1", "2-3", "2-10", "1-1", "2-3", "2-10"]
    codes = torch.tensor([[int(code) for code in word.split("-")] for word in words])
    tokenizer = SpeechCodesTokenizer.from_codes([codes[:3], codes[3:].view(2, 2, 2)])
    assert list(tokenizer.word_counts.items())[:4] == [("2-10", 3), ("2-3", 2), ("1-1", 1), ("10-1", 1)]
    rare_left_out = SpeechCodesTokenizer.from_codes([codes], min_count=2)
    assert rare_left_out.convert_codes_to_ids(codes).tolist() == [4, 3, 5, 4, 3, 5, 4]
    assert rare_left_out.convert_ids_to_codes(torch.tensor([4, 3, 0, 5])).tolist() == [
        [2, 10],
        [-1, -1],
        [-1, -1],
        [2, 3],
    ]


def test_a_word_outside_the_vocabulary_is_unknown_and_never_another():
    tokenizer = SpeechCodesTokenizer.from_counts({"1-3": 1, "0-0": 1})
    # in base 4, of the highest code here, 0-7 would spell the number of 1-3
    assert tokenizer.convert_codes_to_ids(torch.tensor([[0, 7], [1, 3], [3, 1], [0, 0]])).tolist() == [3, 5, 3, 4]
    assert tokenizer("0-7 1-3 hello", add_special_tokens=False)["input_ids"] == [3, 5, 3]


def test_codes_of_any_whole_type_have_the_ids_of_int64(tokenizer, codes):
    expected = tokenizer.convert_codes_to_ids(codes)
    for given in (codes.to(torch.uint8), codes.to(torch.int8), codes.int().numpy(), codes.tolist()):
        assert torch.equal(tokenizer.convert_codes_to_ids(given), expected)
    with pytest.raises(ValueError, match=r"whole numbers, got torch\.float32"):
        tokenizer.convert_codes_to_ids(codes.float())


@pytest.mark.parametrize("num_codes", [256, 320])
def test_codes_of_8_bits_spell_numbers_that_8_bits_do_not_hold(num_codes):
    tokenizer = SpeechCodesTokenizer.with_all_codes(2, num_codes)
    codes = torch.tensor([[1, 2], [255, 255]])
    assert torch.equal(tokenizer.convert_codes_to_ids(codes.to(torch.uint8)), tokenizer.convert_codes_to_ids(codes))


def test_ids_that_are_no_words_have_no_codes(tokenizer):
    ids = torch.tensor([-100, 10_000, 3] * tokenizer.tokens_per_frame)
    assert tokenizer.convert_ids_to_codes(ids).eq(-1).all()


def test_a_word_of_another_number_of_codes_takes_the_place_of_a_frame():
    tokenizer = SpeechCodesTokenizer.per_group(2, 4)
    unknown = [tokenizer.unk_token_id] * 2
    for word in ("1", "1-2-3", "hello"):
        ids = tokenizer(f"{word} 3-0", add_special_tokens=False)["input_ids"]
        assert ids == unknown + tokenizer.convert_codes_to_ids(torch.tensor([[3, 0]])).tolist()


def test_a_batch_is_padded_and_masked_as_any_tokenizer_does(tokenizer):
    texts = [tokenizer.convert_codes_to_string(some_codes(n, groups=tokenizer.num_codevector_groups)) for n in (5, 3)]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    lengths = [n * tokenizer.tokens_per_frame + 2 for n in (5, 3)]
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths
    for ids, text, length in zip(batch["input_ids"].tolist(), texts, lengths, strict=True):
        assert ids[0] == tokenizer.bos_token_id
        assert ids[length - 1] == tokenizer.eos_token_id
        assert set(ids[length:]) <= {tokenizer.pad_token_id}
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer("", add_special_tokens=True)["input_ids"] == [0, 2]
    assert tokenizer(f"<mask> {texts[0]}")["input_ids"][1] == tokenizer.mask_token_id
    shorter = tokenizer(texts[0], truncation=True, max_length=4)["input_ids"]
    assert (len(shorter), shorter[-1]) == (4, tokenizer.eos_token_id)


def test_saved_and_loaded_it_is_the_same(tokenizer, codes, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    transformers.RobertaConfig().save_pretrained(tmp_path)
    for loaded in (
        SpeechCodesTokenizer.from_pretrained(tmp_path),
        transformers.AutoTokenizer.from_pretrained(tmp_path),
        SpeechCodesTokenizer(tmp_path / "dict.txt", num_codevectors_per_group=ENTRIES),
    ):
        assert type(loaded) is SpeechCodesTokenizer
        assert loaded.get_vocab() == tokenizer.get_vocab()
        assert loaded.word_counts == tokenizer.word_counts
        assert loaded.num_codevectors_per_group == ENTRIES
        assert loaded.tokens_per_frame == tokenizer.tokens_per_frame
        assert torch.equal(loaded.convert_codes_to_ids(codes), tokenizer.convert_codes_to_ids(codes))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.tensor([[0, 12]]), "from 0 to 11, got 0 to 12"),
        (torch.tensor([[-1, 3]]), "from 0 to 11, got -1 to 3"),
        (torch.zeros(4, 3, dtype=torch.long), r"G = 2 groups, got \(4, 3\)"),
        (torch.tensor([1, 2]), r"got \(2,\)"),
    ],
)
def test_codes_that_cannot_be_are_refused(codes, message):
    for name in ("all", "per group"):
        with pytest.raises(ValueError, match=message):
            VOCABULARIES[name]().convert_codes_to_ids(codes)


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        ("| 94802\nE 51860\n", {}, r"dict.txt has the word '\|', expected codes"),
        ("1-2 3\n1-2-3 4\n", {}, r"one number of codes, got \[2, 3\]"),
        ("1-2 3\n0:4 4\n", {}, "has the word '0:4'"),
        ("1-2 3\n1-2 4\n", {}, "defines 1-2 more than once"),
        ("1-2\n", {}, "Line 1 .* expected `symbol count`"),
        ("madeupword0000 0\n", {}, "got no words"),
        ("1-02 3\n", {}, "has the word '1-02'"),
        ("1-20 3\n", {"num_codevectors_per_group": 12}, "has the code 20, but num_codevectors_per_group is 12"),
    ],
)
def test_a_dictionary_of_something_else_is_refused(tmp_path, lines, options, message):
    (tmp_path / "dict.txt").write_text(lines)
    with pytest.raises(ValueError, match=message):
        SpeechCodesTokenizer(tmp_path / "dict.txt", **options)


def test_texts_counts_and_ids_that_cannot_be_are_refused():
    tokenizer = VOCABULARIES["all"]()
    with pytest.raises(ValueError, match="words of 2 codes, got '1-2-3'"):
        tokenizer.convert_string_to_codes("1-2-3")
    with pytest.raises(ValueError, match="text has the word 'one'"):
        tokenizer.convert_string_to_codes("1-2 one")
    with pytest.raises(ValueError, match="no word was counted 5 times or more, of 1 words"):
        SpeechCodesTokenizer.from_counts({"1-2": 4}, min_count=5)
    with pytest.raises(ValueError, match=r"groups of 2.*\(3,\)"):
        VOCABULARIES["per group"]().convert_ids_to_codes(torch.tensor([4, 5, 6]))
    with pytest.raises(ValueError, match="either vocab_file or word_counts"):
        SpeechCodesTokenizer()
